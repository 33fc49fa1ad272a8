//! Rows of a lookup while they are read: never more than they may be.

use datafusion::arrow::{
    array::{ArrayRef, RecordBatch},
    compute::{CastOptions, cast_with_options, concat_batches},
    datatypes::SchemaRef,
};

/// What a lookup may take.
#[derive(Clone, Copy)]
pub struct Limits {
    pub rows: usize,
    pub bytes: usize,
}

impl Limits {
    /// Fails where there is more.
    pub fn check(&self, rows: usize, bytes: usize) -> anyhow::Result<()> {
        anyhow::ensure!(
            rows <= self.rows,
            "it has more than {} rows: raise maxRows, or join a smaller table",
            self.rows
        );
        anyhow::ensure!(
            bytes <= self.bytes,
            "it takes more than {} MiB of memory: raise maxSize (and the memory of the pods, of which it takes up to three times as much), or select fewer of its columns",
            self.bytes >> 20
        );
        Ok(())
    }
}

/// The rows that were read so far.
pub struct Rows {
    schema: SchemaRef,
    limits: Limits,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl Rows {
    /// None yet, of these columns.
    pub fn new(schema: SchemaRef, limits: Limits) -> Self {
        Rows {
            schema,
            limits,
            batches: Vec::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows at most.
    pub fn max_rows(&self) -> usize {
        self.limits.rows
    }

    /// Adds rows of these columns.
    pub fn add(&mut self, batch: RecordBatch) -> anyhow::Result<()> {
        self.rows += batch.num_rows();
        self.bytes += batch.get_array_memory_size();
        self.batches.push(batch);
        self.limits.check(self.rows, self.bytes)
    }

    /// Adds rows of columns of the same names and maybe other types.
    pub fn add_cast(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let columns = self.schema.fields().iter().zip(batch.columns());
        let columns = columns.map(|(field, column)| {
            let cast = cast_with_options(column, field.data_type(), &options);
            cast.map_err(|error| anyhow::anyhow!("column `{}`: {error}", field.name()))
        });
        let columns = columns.collect::<anyhow::Result<Vec<ArrayRef>>>()?;
        self.add(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    /// All of them.
    pub fn whole(self) -> anyhow::Result<RecordBatch> {
        Ok(concat_batches(&self.schema, &self.batches)?)
    }
}

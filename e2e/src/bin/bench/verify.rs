//! The one way in which every result is held against the data, whoever made it.

/// A row's cells as text; the first is its key.
pub type Row = Vec<String>;

/// The rows that a result must have, and no others.
pub trait Expected: Send + Sync {
    fn len(&self) -> usize;
    /// Which row has this key.
    fn place(&self, key: &str) -> Option<usize>;
    fn row(&self, place: usize) -> Row;
}

/// Rows that are looked at one by one, in any order.
pub struct Check<'a> {
    expected: &'a dyn Expected,
    seen: Vec<bool>,
    wrong: u64,
    example: Option<Row>,
}

impl<'a> Check<'a> {
    pub fn new(expected: &'a dyn Expected) -> Self {
        Check {
            expected,
            seen: vec![false; expected.len()],
            wrong: 0,
            example: None,
        }
    }

    /// Takes note of a row: it is wrong if nobody expects it, if it comes again, or if a cell differs.
    pub fn see(&mut self, row: Row) {
        let place = row.first().and_then(|key| self.expected.place(key));
        match place {
            Some(place) if !self.seen[place] && self.expected.row(place) == row => {
                self.seen[place] = true;
            }
            _ => {
                self.wrong += 1;
                self.example.get_or_insert(row);
            }
        }
    }

    /// What is wrong with the result; nothing where it is exact.
    pub fn verdict(self) -> Option<String> {
        let missing = self.seen.iter().filter(|seen| !**seen).count();
        if missing == 0 && self.wrong == 0 {
            return None;
        }
        let wrong = self.wrong;
        let example = self.example.map_or(String::new(), |row| {
            let place = row.first().and_then(|key| self.expected.place(key));
            let wanted = place.map(|place| self.expected.row(place));
            format!(", such as {row:?}, where {wanted:?} is expected")
        });
        Some(format!(
            "{missing} rows missing, {wrong} rows wrong{example}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers below this, and their squares.
    struct Squares(usize);

    impl Expected for Squares {
        fn len(&self) -> usize {
            self.0
        }

        fn place(&self, key: &str) -> Option<usize> {
            key.parse().ok().filter(|place| *place < self.0)
        }

        fn row(&self, place: usize) -> Row {
            vec![place.to_string(), (place * place).to_string()]
        }
    }

    fn verdict(rows: &[[&str; 2]]) -> Option<String> {
        let mut check = Check::new(&Squares(3));
        for row in rows {
            check.see(row.map(str::to_owned).to_vec());
        }
        check.verdict()
    }

    #[test]
    fn only_the_very_rows_are_exact() {
        let exact = [["2", "4"], ["0", "0"], ["1", "1"]];
        assert_eq!(verdict(&exact), None);
        assert_eq!(
            verdict(&exact[..2]).unwrap(),
            "1 rows missing, 0 rows wrong"
        );
        for wrong in [["3", "9"], ["1", "1"], ["x", ""]] {
            let rows = [&exact[..], &[wrong]].concat();
            assert!(
                verdict(&rows)
                    .unwrap()
                    .starts_with("0 rows missing, 1 rows wrong")
            );
        }
        let differs = verdict(&[["2", "4"], ["0", "0"], ["1", "2"]]).unwrap();
        assert!(differs.starts_with("1 rows missing, 1 rows wrong, such as [\"1\", \"2\"]"));
    }
}

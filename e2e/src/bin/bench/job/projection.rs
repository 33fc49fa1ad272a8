//! Nested users become flat rows: the SQL of the users pipeline.

use millstream_api::cql::CqlType;
use scylla::value::CqlValue;
use uuid::Uuid;

use super::{
    JobName, Mark, Record, TableJob,
    users::{TEXT_COLUMNS, Users},
};
use crate::verify::{Expected, Row};

const SCHEMA: &str = "
    gender TEXT,
    name STRUCT<title TEXT, first TEXT, last TEXT>,
    location STRUCT<
        street STRUCT<number INT, name TEXT>,
        city TEXT, state TEXT, country TEXT, postcode TEXT
    >,
    email TEXT,
    login STRUCT<uuid UUID, username TEXT>,
    dob STRUCT<age INT>,
    registered STRUCT<date TEXT, age INT>,
    phone TEXT,
    picture STRUCT<medium TEXT>,
    nat TEXT";

const SQL: &str = "
    SELECT
        login.uuid AS id,
        name.first AS first_name,
        name.last AS last_name,
        gender,
        CAST(location.street.number AS TEXT) || ' ' || location.street.name || ', '
            || location.city || ', ' || location.state || ', ' || location.country AS address,
        location.postcode AS post_code,
        email,
        login.username AS username,
        registered.date AS registered_date,
        phone,
        picture.medium AS picture
    FROM records
    WHERE gender IS NOT NULL";

pub struct Projection {
    users: Users,
}

impl Projection {
    /// The same seed gives the same users.
    pub fn new(seed: u64) -> Self {
        let users = Users::new(seed);
        Projection { users }
    }
}

impl TableJob for Projection {
    fn name(&self) -> JobName {
        JobName::Projection
    }

    fn schema(&self) -> &'static str {
        SCHEMA
    }

    fn sql(&self) -> &'static str {
        SQL
    }

    fn columns(&self) -> Vec<(&'static str, CqlType)> {
        let texts = TEXT_COLUMNS.map(|name| (name, CqlType::Text));
        [("id", CqlType::Uuid)].into_iter().chain(texts).collect()
    }

    fn has_groups(&self) -> bool {
        false
    }

    fn records(&self) -> Box<dyn Iterator<Item = Record> + Send> {
        let users = self.users;
        Box::new((0..).map(move |index| {
            let user = users.user(index);
            Record {
                key: user.id.to_string(),
                json: user.json(),
                mark: Mark {
                    key: CqlValue::Uuid(user.id),
                    at_least: None,
                },
            }
        }))
    }

    fn expected(&self, records: u64) -> Box<dyn Expected> {
        let users = self.users;
        Box::new(Rows { users, records })
    }
}

struct Rows {
    users: Users,
    records: u64,
}

impl Expected for Rows {
    fn len(&self) -> usize {
        self.records as usize
    }

    fn place(&self, key: &str) -> Option<usize> {
        let index = self.users.index_of(Uuid::parse_str(key).ok()?)?;
        (index < self.records).then_some(index as usize)
    }

    fn row(&self, place: usize) -> Row {
        let user = self.users.user(place as u64);
        let cells = user.row();
        [user.id.to_string()].into_iter().chain(cells).collect()
    }
}

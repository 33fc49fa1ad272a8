//! What each demo applies, waits for and shows.

/// An example that can be shown.
pub(super) struct Example {
    /// Its folder, and the name of its pipeline.
    pub name: &'static str,
    /// What it is about, for `--help`.
    pub about: &'static str,
    /// Claims of its own that need volumes.
    pub claims: &'static [&'static str],
    pub until: Until,
    /// CQL whose rows are shown.
    pub queries: &'static [&'static str],
    /// Database and collection of which a document is shown.
    pub documents: Option<(&'static str, &'static str)>,
    /// Key of the list in Redis whose first element is shown.
    pub cached: Option<&'static str>,
    /// What is asked of its REST service.
    pub pages: &'static [Page],
    /// Port of its REST service.
    pub port: Option<u16>,
    /// What to look at next, behind `kubectl` or in a browser.
    pub open: &'static [&'static str],
}

/// When there is enough to see.
pub(super) enum Until {
    /// So many rows were written.
    Rows(i64),
    /// The source has given all it has, and everything is stored.
    Complete,
}

/// An answer of the REST service.
pub(super) enum Page {
    /// Is shown.
    Json(&'static str),
    /// Is kept in a file of this name.
    File(&'static str, &'static str),
}

pub(super) const EXAMPLES: [Example; 5] = [
    Example {
        name: "users",
        about: "a polled API becomes a table",
        claims: &[],
        until: Until::Rows(300),
        queries: &[
            "SELECT count(*) AS rows FROM spark_streams.created_users",
            "SELECT first_name, last_name, gender, post_code, email, registered_date FROM spark_streams.created_users LIMIT 5",
        ],
        documents: None,
        cached: None,
        pages: &[],
        port: None,
        open: &[
            "kubectl apply -f examples/users/scheduled/pipeline.yaml # a minute every ten, in place of always",
            "kubectl annotate dp users millstream.dev/run-now=\"$(date)\" --overwrite # a run at once",
            "kubectl get jobs                                     # the runs",
        ],
    },
    Example {
        name: "users-avro",
        about: "by Avro and a schema registry into the tables of three routes",
        claims: &[],
        until: Until::Rows(600),
        queries: &[
            "SELECT count(*) AS rows FROM spark_streams.created_users",
            "SELECT country, name, age FROM spark_streams.seniors LIMIT 5",
            "SELECT country, name, age FROM spark_streams.juniors LIMIT 5",
        ],
        documents: None,
        cached: None,
        pages: &[],
        port: None,
        open: &[
            "curl {registry}/subjects/user_data_topic-value/versions/latest",
            "kubectl apply -f examples/users-avro/scheduled/pipeline.yaml # a minute every ten, in place of always",
            "kubectl annotate dp users-avro millstream.dev/run-now=\"$(date)\" --overwrite # a run at once",
            "kubectl get jobs                                     # the runs",
        ],
    },
    Example {
        name: "licenses",
        about: "a paged API through a cache, into tables and documents",
        claims: &[],
        until: Until::Complete,
        queries: &[
            "SELECT count(*) AS rows FROM nyc.licenses",
            "SELECT license_nbr, business_name, industry, license_status FROM nyc.licenses LIMIT 5",
            "SELECT borough, license_nbr, business_name, expires FROM nyc.active_by_borough LIMIT 5",
        ],
        documents: Some(("nyc", "licenses")),
        cached: Some("api_cached_key"),
        pages: &[],
        port: None,
        open: &[
            "mongosh mongodb://{documents}/nyc --eval 'db.licenses.find().limit(5)'",
            "redis-cli -u redis://{redis} LRANGE api_cached_key 1 1",
        ],
    },
    Example {
        name: "meetup",
        about: "counts by venue, served as JSON, HTML table and plot",
        claims: &[],
        until: Until::Complete,
        queries: &["SELECT venue_name, group_city, count FROM meetup.venues LIMIT 5"],
        documents: None,
        cached: None,
        pages: &[
            Page::Json("/api/data"),
            Page::File("/api/top_venues?format=html", "top_venues.html"),
            Page::File("/api/top_venues?format=svg", "top_venues.svg"),
        ],
        port: Some(5001),
        open: &[
            "http://localhost:5001/api/top_venues",
            "http://localhost:5001/api/data",
            "http://localhost:5001/docs",
        ],
    },
    Example {
        name: "sessions",
        about: "a zip replayed date by date, one row a session, models and insights served",
        claims: &["landing", "lake"],
        until: Until::Complete,
        queries: &[
            "SELECT player_id, country, start_ts, end_ts, session_status FROM games.sessions LIMIT 5",
        ],
        documents: None,
        cached: None,
        pages: &[
            Page::Json("/models/completed-sessions/876c25fb17ef465b9573db4e815cad62"),
            Page::Json("/models/started_sessions/IT/24"),
            Page::Json("/insights/sessions"),
            Page::Json("/insights/completed-per-country"),
            Page::Json("/insights/completed-per-player"),
            Page::Json("/insights/top-country/2016"),
            Page::File(
                "/insights/plot-completed-per-country?format=svg",
                "completed_per_country.svg",
            ),
        ],
        port: Some(8000),
        open: &[
            "http://localhost:8000/docs",
            "http://localhost:8000/insights/plot-completed-per-country",
        ],
    },
];

#[cfg(test)]
mod tests {
    use millstream_api::schedule::RUN_NOW;

    use super::*;
    use crate::install::root;

    #[test]
    fn every_demo_has_an_example_with_what_it_shows() {
        for example in &EXAMPLES {
            let folder = root().join("examples").join(example.name);
            let yaml = std::fs::read_to_string(folder.join("pipeline.yaml")).unwrap();
            assert!(
                yaml.contains(&format!("name: {}\n", example.name)),
                "{yaml}"
            );
            for claim in example.claims {
                let claims = std::fs::read_to_string(folder.join("claims.yaml")).unwrap();
                assert!(claims.contains(&format!("name: {claim}\n")), "{claims}");
                assert!(yaml.contains(&format!("claimName: {claim}}}")), "{claim}");
            }
            for query in example.queries {
                let table = query.split(" FROM ").nth(1).unwrap();
                let table = table.split(' ').next().unwrap();
                let (keyspace, table) = table.split_once('.').unwrap();
                assert!(yaml.contains(&format!("keyspace: {keyspace}\n")), "{query}");
                assert!(yaml.contains(&format!("table: {table}\n")), "{query}");
            }
            if let Some((database, collection)) = example.documents {
                assert!(yaml.contains(&format!("database: {database}\n")));
                assert!(yaml.contains(&format!("collection: {collection}\n")));
            }
            if let Some(key) = example.cached {
                assert!(yaml.contains(&format!("key: {key}\n")));
            }
            for Page::Json(path) | Page::File(path, _) in example.pages {
                let path = path.split('?').next().unwrap();
                // Up to the values of its parameters.
                let fixed = path.split('/').take(3).collect::<Vec<_>>().join("/");
                assert!(yaml.contains(&format!("path: {fixed}")), "{path}");
            }
            if let Some(port) = example.port {
                assert!(yaml.contains(&format!("port: {port}\n")));
            }
            for open in example.open {
                let mut words = open.split(' ').skip_while(|word| *word != "-f");
                if let Some(file) = words.nth(1) {
                    assert!(root().join(file).is_file(), "{open}");
                }
                if open.contains(" annotate ") {
                    let run_now = format!(" dp {} {RUN_NOW}=", example.name);
                    assert!(open.contains(&run_now), "{open}");
                }
            }
        }
    }
}

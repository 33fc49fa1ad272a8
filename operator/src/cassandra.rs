//! Cassandra as the operator needs it. The only file that knows the driver.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use millstream_api::{
    CassandraConnection,
    keyspace::{Order, TableOptions},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    errors::{
        ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, ExecutionError,
        MetadataError, NewSessionError, RequestAttemptError,
    },
    serialize::row::SerializeRow,
};

use crate::{
    credentials::Access,
    keyspace::plan::{ObservedKeyspace, ObservedTable},
};

/// A connection and every query give up after this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A statement that changes the schema may take longer: all nodes have to agree.
const DDL_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the system's certificate authorities are.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why Cassandra didn't do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CassandraError {
    #[error("Cassandra at {servers} can't be reached: {detail}")]
    Unreachable { servers: String, detail: String },
    #[error("Cassandra at {servers} refuses: {detail}")]
    Refused { servers: String, detail: String },
}

/// A Cassandra cluster.
pub struct Cassandra {
    servers: String,
    session: Session,
}

impl Cassandra {
    /// Connects.
    pub async fn connect(
        access: &Access<CassandraConnection>,
    ) -> Result<Cassandra, CassandraError> {
        let servers = access.connection.contact_points.join(", ");
        let mut builder = SessionBuilder::new()
            .known_nodes(&access.connection.contact_points)
            .connection_timeout(Duration::from_secs(5))
            .hostname_resolution_timeout(Some(Duration::from_secs(5)))
            .schema_agreement_timeout(DDL_TIMEOUT)
            // The operator asks system_schema itself, when it wants to know.
            .fetch_schema_metadata(false)
            .fetch_full_schema_metadata(false)
            .refresh_metadata_on_auto_schema_agreement(false);
        if let Some(login) = &access.login {
            builder = builder.user(&login.username, login.password.reveal());
        }
        if access.connection.tls.is_some() {
            let tls = tls(access.ca.as_deref()).map_err(|detail| CassandraError::Refused {
                servers: servers.clone(),
                detail,
            })?;
            builder = builder.tls_context(Some(tls));
        }
        match tokio::time::timeout(TIMEOUT, builder.build()).await {
            Ok(Ok(session)) => Ok(Cassandra { servers, session }),
            Ok(Err(error)) => Err(not_connected(access, servers, &error)),
            Err(_) => Err(CassandraError::Unreachable {
                servers,
                detail: "no connection".into(),
            }),
        }
    }

    /// The keyspace, or nothing where there is none.
    pub async fn describe(
        &self,
        keyspace: &str,
    ) -> Result<Option<ObservedKeyspace>, CassandraError> {
        let found: Vec<(HashMap<String, String>, bool)> = self
            .select(
                "SELECT replication, durable_writes FROM system_schema.keyspaces WHERE keyspace_name = ?",
                (keyspace,),
            )
            .await?;
        let Some((replication, durable_writes)) = found.into_iter().next() else {
            return Ok(None);
        };
        Ok(Some(ObservedKeyspace {
            replication: replication.into_iter().collect(),
            durable_writes,
            tables: self.tables(keyspace).await?,
        }))
    }

    async fn tables(
        &self,
        keyspace: &str,
    ) -> Result<BTreeMap<String, ObservedTable>, CassandraError> {
        type TableRow = (String, Option<String>, Option<i32>, Option<i32>);
        let tables: Vec<TableRow> = self
            .select(
                "SELECT table_name, comment, default_time_to_live, gc_grace_seconds FROM system_schema.tables WHERE keyspace_name = ?",
                (keyspace,),
            )
            .await?;
        let mut observed = BTreeMap::new();
        for (name, comment, default_time_to_live, gc_grace_seconds) in tables {
            let options = TableOptions {
                default_time_to_live,
                gc_grace_seconds,
                comment,
            };
            observed.insert(
                name,
                ObservedTable {
                    options,
                    ..ObservedTable::default()
                },
            );
        }
        type ColumnRow = (String, String, String, i32, String, String);
        let mut columns: Vec<ColumnRow> = self
            .select(
                "SELECT table_name, column_name, kind, position, type, clustering_order FROM system_schema.columns WHERE keyspace_name = ?",
                (keyspace,),
            )
            .await?;
        columns.sort_by_key(|(_, _, _, position, _, _)| *position);
        for (table, column, kind, _, cql_type, order) in columns {
            let Some(table) = observed.get_mut(&table) else {
                continue;
            };
            match kind.as_str() {
                "partition_key" => table.partition_key.push(column.clone()),
                "clustering" => {
                    let order = match order.as_str() {
                        "desc" => Order::Descending,
                        _ => Order::Ascending,
                    };
                    table.clustering_key.push((column.clone(), order));
                }
                _ => {}
            }
            table.columns.insert(column, cql_type);
        }
        Ok(observed)
    }

    /// Whether anything but tables is in a keyspace: types, functions, aggregates, views.
    pub async fn has_more_than_tables(&self, keyspace: &str) -> Result<bool, CassandraError> {
        for (relation, column) in [
            ("types", "type_name"),
            ("functions", "function_name"),
            ("aggregates", "aggregate_name"),
            ("views", "view_name"),
        ] {
            let cql =
                format!("SELECT {column} FROM system_schema.{relation} WHERE keyspace_name = ?");
            let rows: Vec<(String,)> = self.select(&cql, (keyspace,)).await?;
            if !rows.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Changes the schema, and waits until all nodes agree on it.
    pub async fn alter(&self, cql: &str) -> Result<(), CassandraError> {
        tracing::info!(cql, "altering the schema");
        // The driver awaits the agreement before it returns.
        let done = self.session.query_unpaged(cql, &[]);
        match tokio::time::timeout(DDL_TIMEOUT, done).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(self.silent()),
        }
    }

    async fn select<R>(
        &self,
        cql: &str,
        values: impl SerializeRow,
    ) -> Result<Vec<R>, CassandraError>
    where
        R: for<'a> scylla::deserialize::row::DeserializeRow<'a, 'a>,
    {
        let answer = tokio::time::timeout(TIMEOUT, self.session.query_unpaged(cql, values)).await;
        let result = match answer {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => return Err(self.failed(&error)),
            Err(_) => return Err(self.silent()),
        };
        let unread = |detail: String| CassandraError::Refused {
            servers: self.servers.clone(),
            detail: format!("its system tables aren't those of Cassandra 4 or 5: {detail}"),
        };
        let rows = result
            .into_rows_result()
            .map_err(|error| unread(error.to_string()))?;
        rows.rows::<R>()
            .map_err(|error| unread(error.to_string()))?
            .collect::<Result<_, _>>()
            .map_err(|error| unread(error.to_string()))
    }

    fn silent(&self) -> CassandraError {
        CassandraError::Unreachable {
            servers: self.servers.clone(),
            detail: "no answer".into(),
        }
    }

    fn failed(&self, error: &ExecutionError) -> CassandraError {
        let servers = self.servers.clone();
        match error {
            ExecutionError::LastAttemptError(RequestAttemptError::DbError(kind, said)) => {
                CassandraError::Refused {
                    servers,
                    detail: format!("{said} ({kind})"),
                }
            }
            ExecutionError::ConnectionPoolError(ConnectionPoolError::Broken {
                last_connection_error,
            }) => CassandraError::Unreachable {
                servers,
                detail: last_connection_error.to_string(),
            },
            other => CassandraError::Unreachable {
                servers,
                detail: other.to_string(),
            },
        }
    }
}

fn not_connected(
    access: &Access<CassandraConnection>,
    servers: String,
    error: &NewSessionError,
) -> CassandraError {
    if let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(
        ConnectionPoolError::Broken {
            last_connection_error,
        },
    )) = error
    {
        return match last_connection_error {
            ConnectionError::ConnectionSetupRequestError(setup) => {
                let detail = match (&setup.error, &access.login) {
                    (ConnectionSetupRequestErrorKind::DbError(_, said), Some(login)) => {
                        format!("the credentials of {} are wrong: {said}", login.origin)
                    }
                    (ConnectionSetupRequestErrorKind::MissingAuthentication, _) => {
                        "it wants credentials, and none are set: name a Secret in credentialsSecret"
                            .into()
                    }
                    (other, _) => other.to_string(),
                };
                CassandraError::Refused { servers, detail }
            }
            other => CassandraError::Unreachable {
                servers,
                detail: other.to_string(),
            },
        };
    }
    CassandraError::Unreachable {
        servers,
        detail: error.to_string(),
    }
}

fn tls(ca: Option<&str>) -> Result<Arc<ClientConfig>, String> {
    let authorities = match ca {
        Some(pem) => pem.as_bytes().to_vec(),
        None => std::fs::read(SYSTEM_AUTHORITIES)
            .map_err(|error| format!("can't read {SYSTEM_AUTHORITIES}: {error}"))?,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&authorities) {
        let certificate =
            certificate.map_err(|error| format!("the certificate authority isn't PEM: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("the certificate authority can't be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in the certificate authority's PEM".into());
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

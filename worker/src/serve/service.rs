//! The frame around every request: routing, keys, limits, time, metrics.

use std::{
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Extension,
    body::HttpBody,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use chrono::{DateTime, Utc};
use datafusion::arrow::datatypes::SchemaRef;
use futures::future::join_all;
use millstream_api::{serve::Endpoint, worker::ServeConfig};
use millstream_plan::serve::{
    EndpointPlan, EndpointQuery, LakeTable, Path, Readable, parse_time, plan_service,
};
use scylla::{client::session::Session, response::PagingState, statement::unprepared::Statement};
use serde_json::json;
use tokio::sync::Semaphore;

use super::{
    answer::{Answer, Next, negotiate},
    auth::{Auth, Client, Limits},
    engine::Engine,
    html,
    lake::Lake,
    listen::Peer,
    openapi::{self, Security},
    page::Seal,
    parameter::Asked,
    problem::Problem,
    query::Query,
    sql::LakeQuery,
    value::Table,
};
use crate::{
    cassandra::CASSANDRA, config::Credentials, metrics::Metrics, retry::Delays, status::StatusPart,
};

/// Requests at the same time; each holds its rows in memory.
const MAX_IN_FLIGHT: usize = 200;
const MAX_URI_BYTES: usize = 8 * 1024;
/// How often Cassandra, and tables that can't be read, are looked after.
const PING: Duration = Duration::from_secs(2);

/// Pages run nothing but `/docs/docs.js`, and fetch from nowhere else.
const POLICY: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'";

/// A REST service.
pub struct Service {
    title: String,
    endpoints: Vec<Served>,
    auth: Auth,
    security: Security,
    limits: Option<Limits>,
    seal: Seal,
    engine: Engine,
    lake: Arc<Lake>,
    now: Option<DateTime<Utc>>,
    patience: Duration,
    in_flight: Semaphore,
    session: OnceLock<Arc<Session>>,
    /// Whether Cassandra answered when it was asked last.
    reachable: AtomicBool,
    status: StatusPart,
    metrics: Arc<Metrics>,
}

/// An endpoint.
struct Served {
    endpoint: Endpoint,
    path: Path,
    source: Source,
}

/// Where an endpoint's rows are from.
enum Source {
    /// A statement, and its query once Cassandra knows it.
    Cassandra(String, OnceLock<Arc<Query>>),
    Lake(Arc<LakeQuery>),
}

impl Served {
    fn new(endpoint: &Endpoint, plan: EndpointPlan) -> Self {
        let source = match plan.query {
            EndpointQuery::Cql(statement) => Source::Cassandra(statement, OnceLock::new()),
            EndpointQuery::Sql(tables) => Source::Lake(Arc::new(LakeQuery::new(endpoint, tables))),
        };
        Served {
            endpoint: endpoint.clone(),
            path: plan.path,
            source,
        }
    }

    /// The columns of its answers, once they are known.
    fn columns(&self) -> Option<SchemaRef> {
        match &self.source {
            Source::Cassandra(_, query) => Some(query.get()?.columns().clone()),
            Source::Lake(query) => query.columns(),
        }
    }

    /// Under what the status shows its errors.
    fn concern(&self) -> String {
        format!("endpoint {}", self.endpoint.name)
    }
}

impl Service {
    pub fn new(
        config: &ServeConfig,
        credentials: &Credentials,
        status: StatusPart,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let serve = &config.serve;
        let lake = config.tables.iter().map(|table| LakeTable {
            name: table.name.clone(),
            columns: None,
        });
        let readable = Readable {
            keyspaces: &config.keyspaces,
            tables: &[],
            lake: &lake.collect::<Vec<_>>(),
        };
        let plans = plan_service(serve, &readable)?;
        let endpoints = serve.endpoints.iter().zip(plans);
        let mut endpoints: Vec<_> = endpoints
            .map(|(endpoint, plan)| Served::new(endpoint, plan))
            .collect();
        endpoints.sort_by_key(|served| served.path.precedence());
        let auth = serve.auth.as_ref();
        let engine = Engine::new()?;
        let lake = Lake::new(&config.tables, credentials, engine.context().clone())?;
        Ok(Service {
            title: serve
                .title
                .clone()
                .unwrap_or_else(|| config.pipeline.name.clone()),
            endpoints,
            auth: Auth::new(serve, credentials)?,
            security: Security {
                api_key: auth.is_some_and(|auth| auth.api_keys_secret.is_some()),
                basic: auth.is_some_and(|auth| auth.basic_secret.is_some()),
            },
            limits: serve.rate_limit.as_ref().map(Limits::new),
            seal: Seal::new(credentials)?,
            engine,
            lake: Arc::new(lake),
            now: serve.now.as_deref().and_then(parse_time),
            patience: serve.timeout.into(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            session: OnceLock::new(),
            reachable: AtomicBool::new(false),
            status,
            metrics,
        })
    }

    /// Prepares all queries; tries until Cassandra takes them.
    pub async fn open(&self, session: &Arc<Session>) {
        let _ = self.session.set(session.clone());
        self.reachable.store(true, Ordering::Relaxed);
        let mut delays = Delays::default();
        loop {
            let mut failed = false;
            for served in &self.endpoints {
                let Source::Cassandra(statement, query) = &served.source else {
                    continue;
                };
                if query.get().is_some() {
                    continue;
                }
                let prepared = Query::prepare(session, &served.endpoint, statement, self.patience);
                match prepared.await {
                    Ok(prepared) => {
                        let _ = query.set(Arc::new(prepared));
                        self.status.clear(served.concern());
                    }
                    Err(error) => {
                        failed = true;
                        self.fail(served, format!("{error:#}"));
                    }
                }
            }
            if !failed {
                return;
            }
            delays.wait().await;
        }
    }

    fn fail(&self, served: &Served, error: String) {
        let error = format!("endpoint `{}`: {error}", served.endpoint.name);
        self.status.fail(served.concern(), error);
    }

    /// Looks at the Delta Lake tables once, for as long as a request would: the other endpoints don't
    /// wait for tables that can't be read.
    pub async fn open_lake(&self) {
        let _ = tokio::time::timeout(self.patience, self.prepare_lake()).await;
    }

    /// Looks after tables that can't be read for ever.
    pub async fn watch_lake(&self) {
        loop {
            tokio::time::sleep(PING).await;
            self.prepare_lake().await;
        }
    }

    /// Looks at the tables of endpoints that aren't ready, side by side: one may take its time.
    async fn prepare_lake(&self) {
        let endpoints = self.endpoints.iter();
        join_all(endpoints.map(|served| self.prepare(served))).await;
    }

    async fn prepare(&self, served: &Served) {
        let Source::Lake(query) = &served.source else {
            return;
        };
        if query.is_ready(&self.lake) {
            self.status.clear(served.concern());
            return;
        }
        match query.prepare(&self.lake).await {
            Ok(()) => self.status.clear(served.concern()),
            Err(unreadable) => self.fail(served, unreadable.reason()),
        }
    }

    /// Looks after Cassandra for ever.
    pub async fn watch(&self, session: &Session) {
        let mut ping = Statement::new("SELECT key FROM system.local");
        ping.set_request_timeout(Some(PING));
        loop {
            let answered = session.query_unpaged(ping.clone(), ()).await;
            match &answered {
                Ok(_) => self.status.clear(CASSANDRA),
                Err(error) => {
                    tracing::debug!(%error, "Cassandra");
                    self.status.fail(CASSANDRA, "Cassandra can't be reached");
                }
            }
            self.reachable.store(answered.is_ok(), Ordering::Relaxed);
            tokio::time::sleep(PING).await;
        }
    }

    /// Answers a request; gives the name under which it is counted.
    async fn answer<'a>(
        &'a self,
        request: &'a Parts,
        peer: IpAddr,
    ) -> (&'a str, Result<Response, Problem>) {
        let path = request.uri.path();
        let served = self
            .endpoints
            .iter()
            .find(|served| served.path.matches(path).is_some());
        let name = served.map_or("none", |served| served.endpoint.name.as_str());
        let own = match path {
            "/" | "/health" | "/docs" | "/docs/docs.js" | "/openapi.json" => true,
            _ if served.is_none() => {
                let detail = "there is nothing at this path; /docs says what there is";
                return (name, Err(Problem::new(StatusCode::NOT_FOUND, detail)));
            }
            _ => false,
        };
        if let Err(problem) = check(request) {
            return (name, Err(problem));
        }
        match served {
            Some(served) if !own => (name, self.rows(served, request, peer).await),
            _ => (path, Ok(self.page(path))),
        }
    }

    /// What every service has.
    fn page(&self, path: &str) -> Response {
        let typed = |content_type: &'static str, body: String| {
            ([(header::CONTENT_TYPE, content_type)], body).into_response()
        };
        match path {
            "/health" => self.health(),
            "/docs" => {
                let endpoints: Vec<_> = self
                    .endpoints
                    .iter()
                    .map(|served| &served.endpoint)
                    .collect();
                let (key, basic) = (self.security.api_key, self.security.basic);
                typed(
                    "text/html; charset=utf-8",
                    html::docs(&self.title, &endpoints, key, basic),
                )
            }
            "/docs/docs.js" => typed("text/javascript; charset=utf-8", html::SCRIPT.into()),
            "/openapi.json" => {
                let endpoints = self.endpoints.iter();
                let endpoints = endpoints.map(|served| (&served.endpoint, served.columns()));
                let document = openapi::document(&self.title, &self.security, endpoints);
                typed("application/json", document.to_string())
            }
            _ => Redirect::temporary("docs").into_response(),
        }
    }

    fn health(&self) -> Response {
        let mut body = json!({"status": "healthy"});
        let mut code = StatusCode::OK;
        let mut add = |what: &str, fine: bool, words: [&str; 2]| {
            body[what] = json!(words[usize::from(!fine)]);
            if !fine {
                body["status"] = json!("unhealthy");
                code = StatusCode::SERVICE_UNAVAILABLE;
            }
        };
        let (mut reads_cassandra, mut lake) = (false, Vec::new());
        for served in &self.endpoints {
            match &served.source {
                Source::Cassandra(..) => reads_cassandra = true,
                Source::Lake(query) => lake.push(query.is_ready(&self.lake)),
            }
        }
        if reads_cassandra {
            let fine = self.reachable.load(Ordering::Relaxed);
            add("cassandra", fine, ["reachable", "unreachable"]);
        }
        if !lake.is_empty() {
            add("tables", !lake.contains(&false), ["readable", "unreadable"]);
        }
        (
            code,
            [(header::CACHE_CONTROL, "no-store")],
            axum::Json(body),
        )
            .into_response()
    }

    async fn rows(
        &self,
        served: &Served,
        request: &Parts,
        peer: IpAddr,
    ) -> Result<Response, Problem> {
        let client = self.auth.client(&request.headers, peer);
        if let Some(limits) = &self.limits {
            // Who guesses keys is counted by his address.
            let address = Client::Address(peer);
            limits.check(client.as_ref().unwrap_or(&address))?;
        }
        if client.is_none() {
            return Err(self.auth.challenge());
        }
        let busy = || Problem::unavailable("too many requests at the same time");
        let _permit = self.in_flight.try_acquire().map_err(|_| busy())?;
        let answered = tokio::time::timeout(self.patience, self.run(served, request));
        let slow = |_| Problem::unavailable(format!("it took longer than {:?}", self.patience));
        answered.await.map_err(slow)?
    }

    async fn run(&self, served: &Served, request: &Parts) -> Result<Response, Problem> {
        let endpoint = &served.endpoint;
        let (path, query) = (request.uri.path(), request.uri.query().unwrap_or_default());
        let now = self.now.unwrap_or_else(Utc::now);
        let asked = Asked::read(endpoint, &served.path, path, query, now)?;
        let format = negotiate(endpoint, asked.format.as_deref(), &request.headers)?;
        let (table, next) = match &served.source {
            Source::Cassandra(_, known) => {
                let known = known.get();
                self.of_cassandra(endpoint, known, asked, path, query)
                    .await?
            }
            Source::Lake(lake_query) => (self.of_lake(endpoint, lake_query, asked).await?, None),
        };
        let answer = Answer {
            endpoint,
            title: &self.title,
            table: &table,
            next,
        };
        answer.response(format, &request.headers)
    }

    async fn of_cassandra(
        &self,
        endpoint: &Endpoint,
        known: Option<&Arc<Query>>,
        asked: Asked,
        path: &str,
        query: &str,
    ) -> Result<(Table, Option<Next>), Problem> {
        let (session, known) = self.session.get().zip(known).ok_or_else(|| {
            Problem::unavailable(
                "Cassandra hasn't been reached yet; ask again after the time in Retry-After",
            )
        })?;
        let max_rows = endpoint.max_rows as usize;
        if endpoint.transform.is_some() {
            refuse("limit", asked.limit.as_ref())?;
            refuse("page", asked.page.as_ref())?;
            let engine = &self.engine;
            let rows = known.transformed(session, engine, asked.values, max_rows, self.patience);
            return Ok((rows.await?, None));
        }
        let limit = limit(asked.limit.as_deref(), max_rows)?.unwrap_or(max_rows);
        let sealed = format!("{} {:?}", endpoint.name, asked.given);
        let from = match &asked.page {
            Some(token) => self.seal.open(&sealed, token)?,
            None => PagingState::start(),
        };
        let share = self.engine.share();
        let page = known.page(session, share, &asked.values, from, limit);
        let (table, next) = page.await?;
        let token = next.and_then(|next| self.seal.token(&sealed, &next));
        Ok((table, token.map(|token| next_page(path, query, token))))
    }

    async fn of_lake(
        &self,
        endpoint: &Endpoint,
        query: &Arc<LakeQuery>,
        asked: Asked,
    ) -> Result<Table, Problem> {
        refuse("page", asked.page.as_ref())?;
        let limit = limit(asked.limit.as_deref(), endpoint.max_rows as usize)?;
        let (lake, engine) = (&self.lake, &self.engine);
        query
            .rows(lake, engine, asked.values, limit, self.patience)
            .await
    }
}

/// Refuses a parameter by which others are asked for a part of their rows.
fn refuse(name: &str, given: Option<&String>) -> Result<(), Problem> {
    let says = "isn't for this endpoint: it gives all its rows";
    given.map_or(Ok(()), |_| Err(Problem::parameter(name, says)))
}

fn limit(asked: Option<&str>, max_rows: usize) -> Result<Option<usize>, Problem> {
    let Some(text) = asked else {
        return Ok(None);
    };
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=max_rows).contains(number));
    let wrong = || Problem::parameter("limit", &format!("may be 1 to {max_rows}"));
    number.map(Some).ok_or_else(wrong)
}

/// The address of the next page: this one with another token.
fn next_page(path: &str, query: &str, token: String) -> Next {
    let mut link = url::form_urlencoded::Serializer::new(String::new());
    let others = url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name != "page");
    link.extend_pairs(others).append_pair("page", &token);
    Next {
        link: format!("{path}?{}", link.finish()),
        token,
    }
}

/// What no request may be, whatever it asks for.
fn check(request: &Parts) -> Result<(), Problem> {
    if !matches!(request.method, Method::GET | Method::HEAD) {
        let detail = "only GET and HEAD are answered";
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail);
        return Err(problem.header(header::ALLOW, HeaderValue::from_static("GET, HEAD")));
    }
    let uri = &request.uri;
    if uri.path().len() + uri.query().map_or(0, str::len) > MAX_URI_BYTES {
        let detail = format!("the address has more than {MAX_URI_BYTES} bytes");
        return Err(Problem::new(StatusCode::URI_TOO_LONG, detail));
    }
    Ok(())
}

/// Answers a request, and counts it.
pub async fn handle(
    State(service): State<Arc<Service>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let _in_flight = service.metrics.request_begins();
    let (request, body) = request.into_parts();
    let (name, answered) = if body.is_end_stream() {
        service.answer(&request, peer.ip()).await
    } else {
        let detail = "the request has a body, and none is read; send none";
        (
            "none",
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)),
        )
    };
    let mut response = answered.unwrap_or_else(IntoResponse::into_response);
    service
        .metrics
        .request(name, response.status().as_u16(), started.elapsed());
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("accept"));
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

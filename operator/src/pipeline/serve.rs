//! `spec.serve`: the REST service over a pipeline's tables. It needs Cassandra alone, and that only
//! where an endpoint reads it; so it comes and stays whatever becomes of the rest.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service},
};
use kube::api::DeleteParams;
use millstream_api::{
    CassandraConnection, DataPipeline,
    serve::{Serve, ServeStatus},
    worker::{
        Destination, SERVE_PART, SERVE_PORT, ServeConfig, ServeTable, SinkConfig, WorkerConfig,
    },
};
use millstream_plan::{
    Accepted,
    serve::{lake_sinks, readable_keyspaces},
};

use super::{
    children::{self, Stage},
    ensure::{delete, ensure},
    observe::Observed,
    provision::{
        apply_secret, apply_stage, await_keyspace, cassandra_access, pipeline_ref, watched,
    },
    report::errors,
};
use crate::{
    conditions::{ERROR, clip},
    context::Context,
    controller::namespace,
    credentials::Access,
    error::Error,
};

/// Makes the service, or takes it away where it isn't wanted any more.
pub async fn provision(
    pipeline: &DataPipeline,
    context: &Context,
    accepted: &Accepted,
) -> Result<(), Error> {
    let Some(serve) = &pipeline.spec.serve else {
        return remove(pipeline, context).await;
    };
    let cassandra = cassandra(pipeline, context, accepted, serve).await?;
    let mut files: BTreeMap<_, _> = cassandra.iter().flat_map(Access::files).collect();
    let namespace = namespace(pipeline);
    if let Some(auth) = &serve.auth {
        files.extend(context.credentials.serve_files(&namespace, auth).await?);
    }
    let lake = lake_sinks(&pipeline.spec);
    let mut sinks = pipeline.spec.sinks.clone();
    sinks.retain(|sink| lake.contains(&sink.name));
    files.extend(context.credentials.sink_files(&namespace, &sinks).await?);
    let credentials = apply_secret(pipeline, context, Stage::Serve, &files).await?;
    let config = WorkerConfig::Serve(ServeConfig {
        pipeline: pipeline_ref(pipeline),
        cassandra: cassandra.map(|access| access.connection),
        keyspaces: readable_keyspaces(&accepted.sinks),
        tables: tables(&accepted.sinks, &lake),
        port: SERVE_PORT,
        serve: for_workers(serve),
    });
    apply_stage(
        pipeline,
        context,
        Stage::Serve,
        &config,
        serve.replicas,
        credentials.as_deref(),
    )
    .await?;
    let name = Stage::Serve.object_name(pipeline);
    let api = context.api::<Service>(&namespace);
    let live = api.get_opt(&name).await?;
    let desired = children::service(pipeline, serve.port);
    ensure(pipeline, context, live.as_ref(), desired).await?;
    Ok(())
}

/// The pipeline's Cassandra with its tables, where an endpoint reads it.
async fn cassandra(
    pipeline: &DataPipeline,
    context: &Context,
    accepted: &Accepted,
    serve: &Serve,
) -> Result<Option<Access<CassandraConnection>>, Error> {
    if serve
        .endpoints
        .iter()
        .all(|endpoint| endpoint.cql.is_none())
    {
        return Ok(None);
    }
    for name in accepted.declared.keys() {
        await_keyspace(pipeline, context, accepted, name)?;
    }
    cassandra_access(pipeline, context).await.map(Some)
}

/// Where the Delta Lake tables of these sinks are.
fn tables(sinks: &[SinkConfig], read: &BTreeSet<String>) -> Vec<ServeTable> {
    let read = sinks.iter().filter(|sink| read.contains(&sink.name));
    let tables = read.filter_map(|sink| match &sink.destination {
        Destination::Delta(table) => Some(ServeTable {
            name: sink.name.clone(),
            path: table.path.clone(),
            s3: table.sink.s3.clone(),
        }),
        _ => None,
    });
    tables.collect()
}

/// Without what pods needn't be replaced for.
fn for_workers(serve: &Serve) -> Serve {
    Serve {
        replicas: 1,
        port: 80,
        ..serve.clone()
    }
}

async fn remove(pipeline: &DataPipeline, context: &Context) -> Result<(), Error> {
    let name = Stage::Serve.object_name(pipeline);
    let stores = &context.stores;
    let deployment = watched::<Deployment>(&stores.deployments, pipeline, &name);
    let config = watched::<ConfigMap>(&stores.config_maps, pipeline, &name);
    if deployment.is_none() && config.is_none() {
        return Ok(());
    }
    let how = DeleteParams::background;
    delete::<Service>(pipeline, context, &name, how()).await?;
    delete::<Deployment>(pipeline, context, &name, how()).await?;
    apply_secret(pipeline, context, Stage::Serve, &BTreeMap::new()).await?;
    // Last: it tells that there is something left.
    delete::<ConfigMap>(pipeline, context, &name, how()).await
}

/// What is seen of the service.
pub fn status(pipeline: &DataPipeline, observed: &Observed) -> Option<ServeStatus> {
    let serve = pipeline.spec.serve.as_ref()?;
    let name = Stage::Serve.object_name(pipeline);
    let port = match serve.port {
        80 => String::new(),
        port => format!(":{port}"),
    };
    let stage = observed.stages.get(&Stage::Serve);
    Some(ServeStatus {
        ready: stage.map_or(0, |stage| stage.ready),
        url: format!("http://{name}.{}.svc{port}", namespace(pipeline)),
        last_error: errors(observed)
            .get(SERVE_PART)
            .map(|error| clip(error, ERROR)),
    })
}

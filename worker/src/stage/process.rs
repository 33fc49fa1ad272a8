//! Topic → SQL → sinks. Every sink has a consumer group and a loop of its own: one that stands
//! still doesn't stop the others.

use std::sync::Arc;

use millstream_api::worker::ProcessConfig;
use millstream_plan::{RecordSchema, SinkPlan, plan_lookups};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    avro::decode::AvroTopic,
    budget::{Kind, MEMORY, SinkMemory, of_sinks},
    config::Credentials,
    dead_letter::DeadLetters,
    kafka::{self, LazyProducer, fetching_ahead},
    lookup,
    metrics::Metrics,
    registry::Registry,
    sink::cassandra,
    stage::consume::{Parts, SinkStage},
    status::{Status, StatusPart},
};

/// Runs all sinks until shutdown; fails where a restart is needed.
pub async fn run(
    config: ProcessConfig,
    credentials: &Credentials,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let schema = RecordSchema::parse(&config.schema)?;
    let avro = match &config.avro {
        Some(registry) => Some(AvroTopic {
            schema: Arc::new(schema.avro(&config.topic.name)?),
            registry: Arc::new(Registry::new(registry, credentials)?),
        }),
        None => None,
    };
    let client_id = format!("millstream-process-{}", config.pipeline);
    let client = kafka::client(&config.kafka, credentials, &client_id)?;
    let parts: Vec<_> = config
        .sinks
        .iter()
        .map(|sink| status.part(&sink.name))
        .collect();
    let session = match &config.cassandra {
        None => None,
        Some(cassandra) => tokio::select! {
            session = cassandra::connect(cassandra, credentials, &parts) => Some(session?),
            () = shutdown.cancelled() => return Ok(()),
        },
    };
    let lookups = plan_lookups(&config.lookups)?;
    let plans = config.sinks.iter();
    let plans = plans.map(|sink| SinkPlan::joining(&schema, &lookups, &sink.name, &sink.sql));
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    let loaders = lookup::loaders(&config.lookups, &plans, session.as_ref(), credentials)?;
    let memory = memory_of(&config, &plans, &parts);
    let joined: Vec<_> = plans
        .iter()
        .map(|plan| lookup::joined(&loaders, plan))
        .collect();
    let mut sinks = JoinSet::new();
    for loader in loaders {
        let joining = plans.iter().zip(&parts);
        let joining = joining.filter(|(plan, _)| loader.is_joined(plan));
        let status = joining.map(|(_, part)| part.clone()).collect();
        let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
        sinks.spawn(async move {
            loader.run(status, &metrics, shutdown).await;
            Ok(())
        });
    }
    let planned = plans.into_iter().zip(joined).zip(memory);
    for ((sink, status), ((plan, joined), memory)) in config.sinks.iter().zip(parts).zip(planned) {
        let stage_metrics = metrics.stage(&sink.name);
        let dead_letters = DeadLetters {
            producer: Arc::new(LazyProducer::new(client.clone(), status.clone())),
            topic: config.dead_letter_topic.clone(),
            pipeline: config.pipeline.to_string(),
            stage: sink.name.clone(),
            origin: config.topic.name.clone(),
            status: status.clone(),
            metrics: stage_metrics.clone(),
        };
        let group = config.pipeline.sink_group(&sink.name);
        let parts = Parts {
            config: sink.clone(),
            consumer: fetching_ahead(kafka::consumer_config(&client, &group), memory.queue),
            group,
            topic: config.topic.name.clone(),
            topic_id: config.topic.id.clone(),
            dead_letters,
            status,
            metrics: metrics.clone(),
            stage_metrics,
            joined,
            memory,
            avro: avro.clone(),
            credentials: credentials.clone(),
        };
        let (session, base) = (session.clone(), config.topic.timestamp_base);
        let shutdown = shutdown.clone();
        sinks.spawn(async move {
            tokio::select! {
                stage = SinkStage::open(parts, &plan, session, base) => {
                    Arc::new(stage?).run(&shutdown).await
                }
                () = shutdown.cancelled() => Ok(()),
            }
        });
    }
    while let Some(result) = sinks.join_next().await {
        result??;
    }
    Ok(())
}

/// The memory of each sink; says so where there is too little.
fn memory_of(config: &ProcessConfig, plans: &[SinkPlan], parts: &[StatusPart]) -> Vec<SinkMemory> {
    let sinks = config.sinks.iter().zip(plans);
    let kinds = sinks.map(|(sink, plan)| Kind {
        grouped: plan.is_grouped(),
        delta: sink.is_delta(),
    });
    let kinds: Vec<_> = kinds.collect();
    let (memory, too_small) = of_sinks(config.memory_limit, &kinds, &config.lookups);
    if let Some(too_small) = too_small {
        parts.iter().for_each(|part| part.warn(MEMORY, &too_small));
    }
    tracing::debug!(limit = config.memory_limit, ?memory, "memory of the sinks");
    memory
}

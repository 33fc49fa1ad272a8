//! Topic → SQL → sinks. Every sink has a consumer group and a loop of its own: one that stands
//! still doesn't stop the others.

use std::sync::Arc;

use millstream_api::worker::{ProcessConfig, SinkConfig};
use millstream_plan::{RecordSchema, SinkPlan, plan_lookups};
use rdkafka::ClientConfig;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    avro::decode::AvroTopic,
    budget::{Kind, MEMORY, SinkMemory, of_sinks},
    cassandra::{self, Connecting},
    config::Credentials,
    dead_letter::DeadLetters,
    kafka::{self, LazyProducer, fetching_ahead},
    lookup::{self, Joined, Loader},
    metrics::Metrics,
    registry::Registry,
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
    let avro = avro_topic(&config, &schema, credentials)?;
    let client_id = format!("millstream-process-{}", config.pipeline);
    let client = kafka::client(&config.kafka, credentials, &client_id)?;
    let status = config.sinks.iter().map(|sink| status.part(&sink.name));
    let status: Vec<_> = status.collect();
    let stage = Stage {
        config: &config,
        credentials,
        client,
        avro,
        metrics: metrics.clone(),
    };
    let (sinks, loaders) = stage.plan(&schema, &status)?;
    let mut running = JoinSet::<anyhow::Result<()>>::new();
    for loader in loaders {
        let joining = sinks.iter().filter(|sink| loader.is_joined(&sink.plan));
        let status = joining.map(|sink| sink.status.clone()).collect();
        let (metrics, shutdown) = (metrics.clone(), shutdown.clone());
        running.spawn(async move {
            loader.run(status, &metrics, shutdown).await;
            Ok(())
        });
    }
    for sink in sinks {
        running.spawn(run_sink(sink, shutdown.clone()));
    }
    while let Some(result) = running.join_next().await {
        result??;
    }
    Ok(())
}

/// The schemas of the topic's records, where they are Avro.
fn avro_topic(
    config: &ProcessConfig,
    schema: &RecordSchema,
    credentials: &Credentials,
) -> anyhow::Result<Option<AvroTopic>> {
    let Some(registry) = &config.avro else {
        return Ok(None);
    };
    Ok(Some(AvroTopic {
        schema: Arc::new(schema.avro(&config.topic.name)?),
        registry: Arc::new(Registry::new(registry, credentials)?),
    }))
}

/// Runs a sink until shutdown.
async fn run_sink(parts: Parts, shutdown: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        stage = SinkStage::open(parts) => Arc::new(stage?).run(&shutdown).await,
        () = shutdown.cancelled() => Ok(()),
    }
}

/// What the sinks have in common.
struct Stage<'a> {
    config: &'a ProcessConfig,
    credentials: &'a Credentials,
    client: ClientConfig,
    avro: Option<AvroTopic>,
    metrics: Arc<Metrics>,
}

impl Stage<'_> {
    /// Plans the sinks, and the lookups that they join; nothing of them runs yet.
    fn plan(
        &self,
        schema: &RecordSchema,
        status: &[StatusPart],
    ) -> anyhow::Result<(Vec<Parts>, Vec<Loader>)> {
        let (specs, sinks) = (&self.config.lookups, &self.config.sinks);
        let lookups = plan_lookups(specs)?;
        let plans = sinks.iter();
        let plans = plans.map(|sink| SinkPlan::joining(schema, &lookups, &sink.name, &sink.sql));
        let plans = plans.collect::<Result<Vec<_>, _>>()?;
        let session = self.connect(&plans, status)?;
        let loaders = lookup::loaders(specs, &plans, session.as_ref(), self.credentials)?;
        let memory = memory_of(self.config, &plans, status);
        let sinks = sinks.iter().zip(status).zip(plans).zip(memory);
        let sinks = sinks.map(|(((sink, status), plan), memory)| {
            let joined = lookup::joined(&loaders, &plan);
            self.parts(sink, status, plan, session.clone(), joined, memory)
        });
        Ok((sinks.collect(), loaders))
    }

    /// The session, which only those wait for that need it; only these show that it can't be had.
    fn connect(
        &self,
        plans: &[SinkPlan],
        status: &[StatusPart],
    ) -> anyhow::Result<Option<Connecting>> {
        let Some(connection) = &self.config.cassandra else {
            return Ok(None);
        };
        let tables = self.config.lookups.iter();
        let tables = tables.filter(|lookup| lookup.cassandra.is_some());
        let tables: Vec<_> = tables.map(|lookup| lookup.name.as_str()).collect();
        let needs_it = |(sink, plan): (&SinkConfig, &SinkPlan)| {
            sink.cassandra().is_some() || plan.lookups().any(|name| tables.contains(&name))
        };
        let sinks = self.config.sinks.iter().zip(plans).zip(status);
        let waiting = sinks.filter(|(sink, _)| needs_it(*sink));
        let waiting = waiting.map(|(_, status)| status.clone()).collect();
        Ok(Some(cassandra::connect(
            connection,
            self.credentials,
            waiting,
        )?))
    }

    /// What the loop of a sink is made of.
    fn parts(
        &self,
        sink: &SinkConfig,
        status: &StatusPart,
        plan: SinkPlan,
        session: Option<Connecting>,
        joined: Joined,
        memory: SinkMemory,
    ) -> Parts {
        let (config, client) = (self.config, &self.client);
        let stage_metrics = self.metrics.stage(&sink.name);
        let dead_letters = DeadLetters {
            producer: Arc::new(LazyProducer::new(client.clone(), status.clone())),
            topic: config.dead_letter_topic.clone(),
            pipeline: config.pipeline.to_string(),
            stage: sink.name.clone(),
            origin: config.topic.name.clone(),
            origin_id: Some(config.topic.id.clone()),
            status: status.clone(),
            metrics: stage_metrics.clone(),
        };
        let group = config.pipeline.sink_group(&sink.name);
        Parts {
            config: sink.clone(),
            plan,
            consumer: fetching_ahead(kafka::consumer_config(client, &group), memory.queue),
            group,
            topic: config.topic.name.clone(),
            topic_id: config.topic.id.clone(),
            timestamp_base: config.topic.timestamp_base,
            dead_letters,
            status: status.clone(),
            metrics: self.metrics.clone(),
            stage_metrics,
            joined,
            memory,
            avro: self.avro.clone(),
            session,
            prefers_datacenter: config
                .cassandra
                .as_ref()
                .is_some_and(|cassandra| cassandra.datacenter.is_some()),
            credentials: self.credentials.clone(),
        }
    }
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

//! What a test does with pods and pipelines.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use millstream_api::worker::PipelineRef;
use millstream_api::{DataPipeline, condition};

use crate::{Namespace, PATIENCE, await_condition, eventually};

impl Namespace {
    /// Waits until the pipeline is ready at its current spec.
    ///
    /// # Errors
    /// When it isn't within two minutes.
    pub async fn ready(&self, pipeline: &str) -> Result<DataPipeline> {
        await_condition(&self.api(), pipeline, condition::READY, PATIENCE).await
    }

    /// Records of the topic that the sink hasn't acknowledged yet. Asks Kafka, not the operator.
    ///
    /// # Errors
    /// When there is no such topic, or no offset was ever committed.
    pub fn lag(&self, pipeline: &str, sink: &str, topic: &str) -> Result<i64> {
        let pipeline = PipelineRef {
            namespace: self.name.clone(),
            name: pipeline.to_owned(),
        };
        self.kafka.lag(&pipeline.sink_group(sink), topic)
    }

    /// Waits until the sink has acknowledged every record that is in the topic now.
    ///
    /// # Errors
    /// When there is lag after `timeout`.
    pub async fn drained(
        &self,
        pipeline: &str,
        sink: &str,
        topic: &str,
        timeout: Duration,
    ) -> Result<()> {
        eventually(timeout, async || {
            let lag = self.lag(pipeline, sink, topic)?;
            ensure!(lag == 0, "{pipeline} lags by {lag} records in {sink}");
            Ok(())
        })
        .await
    }

    /// Waits until there are so many records in the topic, or more.
    ///
    /// # Errors
    /// When there are fewer after two minutes.
    pub async fn filled(&self, topic: &str, at_least: i64) -> Result<()> {
        eventually(PATIENCE, async || {
            let records = self.kafka.records(topic)?;
            ensure!(records >= at_least, "{records} records, not {at_least} yet");
            Ok(())
        })
        .await
    }

    /// The pods of one stage (`ingest` or `process`) of a pipeline that aren't being deleted.
    ///
    /// # Errors
    /// When the API server doesn't answer.
    pub async fn pods(&self, pipeline: &str, stage: &str) -> Result<Vec<Pod>> {
        let mut pods = self.all_pods(pipeline, stage).await?;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(pods)
    }

    /// Those that are being deleted too.
    async fn all_pods(&self, pipeline: &str, stage: &str) -> Result<Vec<Pod>> {
        let labels = ListParams::default().labels(&format!("millstream.dev/pipeline={pipeline}"));
        let mut pods = self.api::<Pod>().list(&labels).await?.items;
        let prefix = format!("{pipeline}-{stage}-");
        pods.retain(|pod| pod.name_any().starts_with(&prefix));
        Ok(pods)
    }

    /// Waits until so many pods of a stage are ready, and there are no others, also none that drains.
    ///
    /// # Errors
    /// When it isn't so within two minutes.
    pub async fn ready_pods(&self, pipeline: &str, stage: &str, count: usize) -> Result<Vec<Pod>> {
        eventually(PATIENCE, async || {
            let pods = self.all_pods(pipeline, stage).await?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            ensure!(
                ready == count && pods.len() == count,
                "{ready} of {} {stage} pods are ready, not {count} of {count}",
                pods.len()
            );
            Ok(pods)
        })
        .await
    }

    /// Kills a pod: no SIGTERM, no drain.
    ///
    /// # Errors
    /// When the API server doesn't answer.
    pub async fn kill(&self, pod: &Pod) -> Result<()> {
        let name = pod.name_any();
        let namespace = pod.namespace().unwrap_or_else(|| self.name.clone());
        let api = kube::Api::<Pod>::namespaced(self.client.clone(), &namespace);
        api.delete(&name, &DeleteParams::default().grace_period(0))
            .await?;
        Ok(())
    }
}

/// Whether the pod's readiness probe succeeds.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

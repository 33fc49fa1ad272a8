//! `spec.paused`: the pods go and the runs are held, whatever else is wrong with the pipeline.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use millstream_api::DataPipeline;
use serde_json::json;

use super::{children::Stage, ensure::check_owner, provision::watched, runs::Runs};
use crate::{context::Context, controller::namespace, error::Error, metrics::System};

/// Sees to it that nothing runs while the pipeline is paused. What is applied later, where all is
/// well, has no replicas either.
pub async fn pause(pipeline: &DataPipeline, context: &Context, runs: &Runs) -> Result<(), Error> {
    runs.hold(pipeline, context).await?;
    if !pipeline.spec.paused {
        return Ok(());
    }
    for stage in [Stage::Ingest, Stage::Process] {
        let name = stage.object_name(pipeline);
        let live = watched::<Deployment>(&context.stores.deployments, pipeline, &name);
        let Some(live) = live.filter(|live| must_go(pipeline, live)) else {
            continue;
        };
        let patch = json!({"metadata": {"uid": live.uid()}, "spec": {"replicas": 0}});
        let api = context.api::<Deployment>(&namespace(pipeline));
        context.metrics.wrote(System::Kubernetes);
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
    }
    Ok(())
}

/// Whether a Deployment is the pipeline's, and has pods.
fn must_go(pipeline: &DataPipeline, live: &Deployment) -> bool {
    let replicas = live.spec.as_ref().and_then(|spec| spec.replicas);
    replicas != Some(0)
        && live.metadata.deletion_timestamp.is_none()
        && check_owner(pipeline, live).is_ok()
}

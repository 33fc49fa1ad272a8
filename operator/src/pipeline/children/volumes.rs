//! The volumes of a pod that reads files, or writes tables.

use millstream_api::{
    sink::{Sink, delta::DELTA_PATH},
    source::file::{DATA_PATH, FileSource, LANDING_PATH, Volume},
};
use serde_json::{Value, json};

/// Volumes with their mounts.
pub fn of(files: &FileSource) -> Vec<(Value, Value)> {
    let landing = files.landing_zone.as_ref();
    let landing = landing.and_then(|zone| zone.volume.as_ref());
    let data = files.volume.as_ref().map(|volume| {
        let mount = json!({"name": "data", "mountPath": DATA_PATH, "readOnly": true});
        (data(volume), mount)
    });
    let landing = landing.map(|landing| {
        let claim = &landing.persistent_volume_claim;
        (
            json!({"name": "landing", "persistentVolumeClaim": claim}),
            json!({"name": "landing", "mountPath": LANDING_PATH}),
        )
    });
    // The root file system can't be written: temporary files have a volume of their own.
    let scratch = (
        json!({"name": "scratch", "emptyDir": {"sizeLimit": files.scratch_size}}),
        json!({"name": "scratch", "mountPath": "/tmp"}),
    );
    data.into_iter().chain(landing).chain([scratch]).collect()
}

/// The volumes that sinks write to, with their mounts.
pub fn of_sinks(sinks: &[Sink]) -> Vec<(Value, Value)> {
    let volumes = sinks.iter().enumerate().filter_map(|(index, sink)| {
        let volume = sink.delta.as_ref()?.volume.as_ref()?;
        let claim = &volume.persistent_volume_claim;
        // A sink's name may be too long for the name of a volume.
        let name = format!("delta-{index}");
        let path = format!("{DELTA_PATH}/{}", sink.name);
        Some((
            json!({"name": name, "persistentVolumeClaim": claim}),
            json!({"name": name, "mountPath": path}),
        ))
    });
    volumes.collect()
}

fn data(volume: &Volume) -> Value {
    match (&volume.persistent_volume_claim, &volume.config_map) {
        (Some(claim), _) => json!({"name": "data", "persistentVolumeClaim": claim}),
        (None, map) => json!({"name": "data", "configMap": map}),
    }
}

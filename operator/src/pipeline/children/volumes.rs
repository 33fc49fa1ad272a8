//! The volumes of a pod that reads files, or writes or reads tables.

use millstream_api::{
    DataPipelineSpec, Lookup,
    lookup::{LOOKUPS_PATH, SCRATCH_GIBIBYTES},
    sink::{Sink, delta::DELTA_PATH},
    source::file::{DATA_PATH, FileSource, LANDING_PATH, Volume},
};
use millstream_plan::serve::lake_sinks;
use serde_json::{Value, json};

/// Volumes with their mounts.
pub fn of(files: &FileSource) -> Vec<(Value, Value)> {
    let landing = files.landing_zone.as_ref();
    let landing = landing.and_then(|zone| zone.volume.as_ref());
    let data = files.volume.as_ref().map(|volume| {
        let mount = json!({"name": "data", "mountPath": DATA_PATH, "readOnly": true});
        (data("data", volume), mount)
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

/// The volumes of a pod that processes, with their mounts.
pub fn of_process(spec: &DataPipelineSpec) -> Vec<(Value, Value)> {
    let mut volumes = of_sinks(&spec.sinks, |_| true);
    volumes.extend(of_lookups(&spec.lookups));
    volumes
}

/// The volumes of a pod that serves, with their mounts: of the tables that endpoints read.
pub fn of_serve(spec: &DataPipelineSpec) -> Vec<(Value, Value)> {
    let read = lake_sinks(spec);
    let mut volumes = of_sinks(&spec.sinks, |sink| read.contains(&sink.name));
    for (_, mount) in &mut volumes {
        mount["readOnly"] = json!(true);
    }
    volumes
}

/// The volumes of lookups, with their mounts.
fn of_lookups(lookups: &[Lookup]) -> Vec<(Value, Value)> {
    let files = lookups.iter().enumerate();
    let files = files.filter_map(|(index, lookup)| Some((index, lookup, lookup.file.as_ref()?)));
    let volumes = files.clone().filter_map(|(index, lookup, file)| {
        // A lookup's name may have a `_`, which the name of a volume can't.
        let name = format!("lookup-{index}");
        let path = format!("{LOOKUPS_PATH}/{}", lookup.name);
        let mount = json!({"name": name, "mountPath": path, "readOnly": true});
        Some((data(&name, file.volume.as_ref()?), mount))
    });
    // What is downloaded, or unpacked, is on the disk for a while.
    let room = files.clone().count() as u64 * SCRATCH_GIBIBYTES;
    let scratch = (room > 0).then(|| {
        (
            json!({"name": "scratch", "emptyDir": {"sizeLimit": format!("{room}Gi")}}),
            json!({"name": "scratch", "mountPath": "/tmp"}),
        )
    });
    volumes.chain(scratch).collect()
}

/// The volumes with the tables of sinks, with their mounts.
fn of_sinks(sinks: &[Sink], is_wanted: impl Fn(&Sink) -> bool) -> Vec<(Value, Value)> {
    let wanted = sinks.iter().enumerate();
    let wanted = wanted.filter(|(_, sink)| is_wanted(sink));
    let volumes = wanted.filter_map(|(index, sink)| {
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

fn data(name: &str, volume: &Volume) -> Value {
    match (&volume.persistent_volume_claim, &volume.config_map) {
        (Some(claim), _) => json!({"name": name, "persistentVolumeClaim": claim}),
        (None, map) => json!({"name": name, "configMap": map}),
    }
}

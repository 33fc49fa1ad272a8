//! A volume for a claim that no storage class serves: a folder of this machine, where the cluster's
//! one node is this machine.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::{Namespace, PATIENCE, eventually};

/// A claim in a test's namespace that gets a volume.
pub struct Volume {
    name: String,
    folder: Option<tempfile::TempDir>,
}

impl Volume {
    /// Makes the claim; and a volume for it, where the cluster makes none by itself.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn claim(namespace: &Namespace, claim: &str) -> Result<Self> {
        let name = format!("{}-{claim}", namespace.name);
        let manifest = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        });
        let classes = Api::<StorageClass>::all(namespace.client.clone());
        let mut folder = None;
        if classes.list(&ListParams::default()).await?.items.is_empty() {
            let made = tempfile::tempdir()?;
            // Pods run as somebody else.
            std::fs::set_permissions(made.path(), Permissions::from_mode(0o777))?;
            let volume = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "capacity": {"storage": "1Gi"},
                    "claimRef": {"namespace": namespace.name, "name": claim},
                    "hostPath": {"path": made.path(), "type": "Directory"},
                    "persistentVolumeReclaimPolicy": "Retain",
                },
            }))?;
            let volumes = Api::<PersistentVolume>::all(namespace.client.clone());
            volumes.create(&PostParams::default(), &volume).await?;
            folder = Some(made);
        }
        namespace.apply(&manifest.to_string()).await?;
        Ok(Volume { name, folder })
    }

    /// Where it is; none where it is on another machine.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(|folder| folder.path())
    }

    /// The files in it, in the order of their paths; none where it is on another machine.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn files(&self) -> Result<Option<Vec<PathBuf>>> {
        let Some(folder) = self.folder() else {
            return Ok(None);
        };
        let mut files = Vec::new();
        walk(folder, &mut files)?;
        files.sort();
        Ok(Some(files))
    }

    /// Removes the volume, once nobody uses it: after the namespace is deleted.
    ///
    /// # Errors
    /// When it is still there after two minutes.
    pub async fn remove(self, namespace: &Namespace) -> Result<()> {
        if self.folder.is_none() {
            return Ok(());
        }
        namespace.delete_namespace().await?;
        let volumes = Api::<PersistentVolume>::all(namespace.client.clone());
        volumes.delete(&self.name, &DeleteParams::default()).await?;
        eventually(PATIENCE, async || {
            let left = volumes.get_opt(&self.name).await?;
            ensure!(left.is_none(), "the volume {} is still there", self.name);
            Ok(())
        })
        .await
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

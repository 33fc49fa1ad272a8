//! How the number of process pods follows the load.

use std::time::Duration as StdDuration;

use kube::{KubeSchema, core::Duration};
use serde::{Deserialize, Serialize};

use crate::source::DURATION;

/// The operator chooses the number of process pods by the lag of the sink that lags most. It never
/// has more than the topic has partitions, goes one step at a time (at most twice or half as many
/// pods), and doesn't take pods away while the lag isn't known.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas").message("scaling.minReplicas can't be more than scaling.maxReplicas"))]
pub struct Scaling {
    /// Fewest process pods. With 0, none run while there is nothing to process; the first one is
    /// started within two seconds of the first record.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: i32,
    /// Most process pods; the topic's partitions where absent. Pods beyond those would be idle, so
    /// there are never more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: Option<i32>,
    /// Records of lag per pod: with more, pods are added. They are taken away again when fewer can
    /// keep up with what arrives, by what a pod was seen to process. The rows that a Delta Lake sink
    /// gathers until its next commit (`commitInterval`) aren't counted.
    #[serde(default = "ten_thousand")]
    #[schemars(range(min = 1))]
    pub target_lag: i64,
    /// For how long a need must last before it is acted on.
    #[serde(default)]
    pub stabilization: Stabilization,
}

/// For how long a need must last before it is acted on.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[self.up, self.down].all(time, duration(time) <= duration('1h'))").message("scaling.stabilization.up and down may be 1h at most"))]
pub struct Stabilization {
    /// Before pods are added. The first one is always started at once.
    #[serde(default = "at_once")]
    #[schemars(extend("pattern" = DURATION))]
    pub up: Duration,
    /// Before pods are taken away.
    #[serde(default = "a_minute")]
    #[schemars(extend("pattern" = DURATION))]
    pub down: Duration,
}

impl Default for Stabilization {
    fn default() -> Self {
        Stabilization {
            up: at_once(),
            down: a_minute(),
        }
    }
}

fn one() -> i32 {
    1
}

fn ten_thousand() -> i64 {
    10_000
}

fn at_once() -> Duration {
    StdDuration::ZERO.into()
}

fn a_minute() -> Duration {
    StdDuration::from_secs(60).into()
}

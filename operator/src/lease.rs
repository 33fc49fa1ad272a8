//! One operator works at a time: the holder of a Lease. Others are ready, and wait for it.
//!
//! Clocks aren't compared: who waits takes the lease over when it has seen it unchanged for as long
//! as it lasts, and who holds it stops before that.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Name of the Lease.
const NAME: &str = "millstream-operator";
/// A lease that wasn't renewed for so long may be taken over.
const DURATION: Duration = Duration::from_secs(15);
/// The holder gives up when it couldn't renew the lease for so long.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between renewals, and between looks of those who wait.
const PACE: Duration = Duration::from_secs(3);
/// For one look: a request or two.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The right to reconcile.
pub struct Lease {
    api: Api<LeaseObject>,
    identity: String,
}

/// The lease as somebody who waits has seen it, and since when.
struct Seen {
    version: Option<String>,
    since: Instant,
}

/// What there is to do with a lease.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Create,
    Take,
    Wait,
}

impl Lease {
    /// The lease in a namespace; each process has an identity of its own.
    pub fn new(client: Client, namespace: &str) -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".into());
        Lease {
            api: Api::namespaced(client, namespace),
            identity: format!("{host}_{}", uuid::Uuid::new_v4()),
        }
    }

    /// Waits until the lease is held.
    pub async fn acquire(&self) {
        let mut seen = None;
        let mut told = false;
        loop {
            match self.claim(&mut seen).await {
                Ok(true) => break,
                Ok(false) if !told => {
                    tracing::info!("another operator holds the lease: waiting");
                    told = true;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!("can't get the lease: {error}"),
            }
            sleep(PACE).await;
        }
        tracing::info!(identity = self.identity, "the lease is held");
    }

    /// Renews the lease; returns when it is lost.
    pub async fn keep(&self) {
        let mut renewed = Instant::now();
        loop {
            let renew = async {
                sleep(PACE).await;
                (Instant::now(), self.claim(&mut None).await)
            };
            match timeout_at(renewed + DEADLINE, renew).await {
                Ok((asked, Ok(true))) => renewed = asked,
                Ok((_, Err(error))) => tracing::warn!("can't renew the lease: {error}"),
                Ok((_, Ok(false))) | Err(_) => return,
            }
        }
    }

    /// Gives the lease up, if it is held, so that the next one needn't wait.
    pub async fn release(&self) {
        let release = async {
            let Some(mut lease) = self.api.get_opt(NAME).await? else {
                return Ok(());
            };
            let mine = holder(&lease) == Some(&self.identity);
            if let Some(spec) = lease.spec.as_mut().filter(|_| mine) {
                spec.holder_identity = None;
                self.api
                    .replace(NAME, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        match timeout(TIMEOUT, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("can't give up the lease: {error}"),
            Err(_) => tracing::warn!("can't give up the lease: no answer"),
        }
    }

    /// Takes or renews the lease, if nobody else holds it. Whether it is held now.
    async fn claim(&self, seen: &mut Option<Seen>) -> Result<bool, String> {
        match timeout(TIMEOUT, self.try_claim(seen)).await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }

    async fn try_claim(&self, seen: &mut Option<Seen>) -> kube::Result<bool> {
        let now = Instant::now();
        let mut lease = self.api.get_opt(NAME).await?;
        let params = PostParams::default();
        match decide(lease.as_ref(), &self.identity, seen, now) {
            Claim::Wait => return Ok(false),
            Claim::Create => {
                let lease = LeaseObject {
                    metadata: ObjectMeta {
                        name: Some(NAME.into()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.spec(None)),
                };
                self.api.create(&params, &lease).await?;
            }
            Claim::Take => {
                // With the resource version that was read: of two that try, one is refused.
                if let Some(lease) = &mut lease {
                    lease.spec = Some(self.spec(lease.spec.take()));
                    self.api.replace(NAME, &params, lease).await?;
                }
            }
        }
        Ok(true)
    }

    fn spec(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let mine = before.holder_identity.as_ref() == Some(&self.identity);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            renew_time: Some(now.clone()),
            acquire_time: if mine { before.acquire_time } else { Some(now) },
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            ..LeaseSpec::default()
        }
    }
}

fn holder(lease: &LeaseObject) -> Option<&String> {
    let holder = lease.spec.as_ref()?.holder_identity.as_ref()?;
    Some(holder).filter(|holder| !holder.is_empty())
}

/// Whether the lease may be taken.
fn decide(lease: Option<&LeaseObject>, me: &str, seen: &mut Option<Seen>, now: Instant) -> Claim {
    let Some(lease) = lease else {
        return Claim::Create;
    };
    match holder(lease) {
        None => return Claim::Take,
        Some(holder) if holder == me => return Claim::Take,
        Some(_) => {}
    }
    let version = lease.resource_version();
    let seen = match seen {
        Some(seen) if seen.version == version => seen,
        _ => seen.insert(Seen {
            version,
            since: now,
        }),
    };
    let lasts = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds);
    let lasts = lasts.map_or(DURATION, |lasts| Duration::from_secs(lasts.max(0) as u64));
    if now.duration_since(seen.since) >= lasts {
        Claim::Take
    } else {
        Claim::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, version: &str) -> LeaseObject {
        LeaseObject {
            metadata: ObjectMeta {
                resource_version: Some(version.into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(Into::into),
                lease_duration_seconds: Some(15),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_lease_that_is_free_or_mine_is_taken_at_once() {
        let now = Instant::now();
        let decide = |lease: Option<LeaseObject>| decide(lease.as_ref(), "me", &mut None, now);
        assert_eq!(decide(None), Claim::Create);
        assert_eq!(decide(Some(lease(None, "1"))), Claim::Take);
        assert_eq!(decide(Some(lease(Some(""), "1"))), Claim::Take);
        assert_eq!(decide(Some(lease(Some("me"), "1"))), Claim::Take);
        assert_eq!(decide(Some(lease(Some("other"), "1"))), Claim::Wait);
    }

    #[test]
    fn one_that_is_not_renewed_is_taken_over_by_the_own_clock() {
        let (mut seen, start) = (None, Instant::now());
        let mut at = |second, version| {
            let now = start + Duration::from_secs(second);
            decide(Some(&lease(Some("other"), version)), "me", &mut seen, now)
        };
        assert_eq!(at(0, "1"), Claim::Wait);
        assert_eq!(at(14, "1"), Claim::Wait);
        assert_eq!(at(15, "2"), Claim::Wait, "it was renewed");
        assert_eq!(at(29, "2"), Claim::Wait);
        assert_eq!(at(30, "2"), Claim::Take);
    }

    #[test]
    fn the_holder_gives_up_before_another_takes_over() {
        // The lease may have been taken a request's time before the holder hears of it.
        assert!(DEADLINE + TIMEOUT <= DURATION && PACE + TIMEOUT < DEADLINE);
    }
}

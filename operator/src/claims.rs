//! Two resources that claim one topic or keyspace: the older wins.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A rival whose claim is older than mine, if there is one. `rivals` may hold myself.
pub fn older<'a>(
    mine: &ObjectMeta,
    rivals: impl IntoIterator<Item = &'a ObjectMeta>,
) -> Option<String> {
    let age = |meta: &ObjectMeta| {
        let created = meta.creation_timestamp.as_ref().map(|time| time.0);
        (created, meta.uid.clone())
    };
    rivals
        .into_iter()
        .filter(|rival| rival.uid != mine.uid && age(rival) < age(mine))
        .min_by_key(|rival| age(rival))
        .map(name)
}

/// `namespace/name`.
pub fn name(meta: &ObjectMeta) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&meta.namespace), part(&meta.name))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn meta(uid: &str, second: i64) -> ObjectMeta {
        ObjectMeta {
            name: Some(uid.into()),
            namespace: Some("n".into()),
            uid: Some(uid.into()),
            creation_timestamp: Timestamp::from_second(second).ok().map(Time),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn the_older_wins_and_the_uid_decides_a_draw() {
        let rivals = [meta("a", 5), meta("b", 5), meta("c", 9)];
        assert_eq!(older(&rivals[0], &rivals), None);
        assert_eq!(older(&rivals[1], &rivals), Some("n/a".into()));
        assert_eq!(older(&rivals[2], &rivals), Some("n/a".into()));
    }
}

//! Randomuser: `GET /api/?results=N&seed=S&page=P`.
//!
//! A seed gives the same users every time; without one each call gives new ones, and tells in
//! `info.seed` by which seed they can be had again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Query, State};
use axum::response::Response;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::faults::{Injected, refusal};
use crate::nations::{NATIONS, Nation, Postcode};
use crate::{Apis, random};

/// As many as the public API gives at most.
const MAX_RESULTS: u64 = 5000;
/// Ages are counted up to 2026-01-01, so that they don't change from day to day.
const TODAY: i64 = 1_767_225_600;
const YEAR: i64 = 31_556_952;

#[derive(Deserialize)]
pub(crate) struct Parameters {
    #[serde(default = "one")]
    results: u64,
    #[serde(default = "one")]
    page: u64,
    seed: Option<String>,
}

fn one() -> u64 {
    1
}

pub(crate) async fn serve(
    State(apis): State<Arc<Apis>>,
    fault: Injected,
    Query(parameters): Query<Parameters>,
) -> Response {
    if !(1..=MAX_RESULTS).contains(&parameters.results) || parameters.page == 0 {
        return refusal(&format!(
            "`results` is 1 to {MAX_RESULTS}, `page` is 1 or more"
        ));
    }
    fault
        .answer(|delivered| apis.users(&parameters, delivered))
        .await
}

impl Apis {
    fn users(&self, parameters: &Parameters, delivered: bool) -> Value {
        let Parameters { results, page, .. } = *parameters;
        let seed = parameters.seed.clone().unwrap_or_else(|| {
            let call = if delivered {
                self.next_call()
            } else {
                u64::MAX
            };
            format!("{:016x}", random(&self.seed, "call", call).next_u64())
        });
        let start = (page - 1).saturating_mul(results);
        let users = match &self.recorded {
            None => (0..results)
                .map(|i| user(&seed, start.saturating_add(i)))
                .collect(),
            Some(recorded) if parameters.seed.is_some() => recorded.page(start, results).to_vec(),
            Some(recorded) => {
                let taken = if delivered { results } else { 0 };
                let position = self.position.fetch_add(taken, Ordering::Relaxed);
                recorded.page(position, results).to_vec()
            }
        };
        if delivered {
            self.users_sent.add(&users);
        }
        let info = json!({"seed": seed, "results": users.len(), "page": page, "version": "1.4"});
        json!({"results": users, "info": info})
    }
}

/// The user at this place of the seed's endless list.
pub fn user(seed: &str, index: u64) -> Value {
    let rng = &mut random(seed, "user", index);
    let nation = pick(rng, NATIONS);
    let woman = rng.random::<bool>();
    let (titles, names, portraits): (&[_], _, _) = match woman {
        true => (&["Ms", "Mrs", "Miss"], nation.women, "women"),
        false => (&["Mr"], nation.men, "men"),
    };
    let (first, last) = (pick(rng, names), pick(rng, nation.families));
    let username = username(rng);
    let portrait = format!("{portraits}/{}.jpg", rng.random_range(0..100));
    let pictures = "https://randomuser.me/api/portraits";
    json!({
        "gender": if woman { "female" } else { "male" },
        "name": {"title": pick(rng, titles), "first": first, "last": last},
        "location": location(rng, &nation),
        "email": email(first, last, &username),
        "login": login(rng, username),
        "dob": date(rng, 18..80),
        "registered": date(rng, 0..24),
        "phone": fill(rng, nation.phone),
        "cell": fill(rng, nation.cell),
        "id": match nation.id {
            Some((name, pattern)) => json!({"name": name, "value": fill(rng, pattern)}),
            None => json!({"name": "", "value": null}),
        },
        "picture": {
            "large": format!("{pictures}/{portrait}"),
            "medium": format!("{pictures}/med/{portrait}"),
            "thumbnail": format!("{pictures}/thumb/{portrait}"),
        },
        "nat": nation.code,
    })
}

fn location(rng: &mut StdRng, nation: &Nation) -> Value {
    const TIMEZONES: &[(&str, &str)] = &[
        ("-6:00", "Central Time (US & Canada), Mexico City"),
        ("0:00", "Western Europe Time, London, Lisbon, Casablanca"),
        ("+3:30", "Tehran"),
        ("+5:45", "Kathmandu"),
        ("+9:30", "Adelaide, Darwin"),
    ];
    let (city, state) = pick(rng, nation.places);
    let (offset, description) = pick(rng, TIMEZONES);
    json!({
        "street": {"number": rng.random_range(1..10_000), "name": pick(rng, nation.streets)},
        "city": city,
        "state": state,
        "country": nation.country,
        "postcode": match nation.postcode {
            Postcode::Number => json!(rng.random_range(10_000..100_000)),
            Postcode::Text(pattern) => json!(fill(rng, pattern)),
        },
        "coordinates": {
            "latitude": format!("{:.4}", rng.random_range(-90.0..90.0)),
            "longitude": format!("{:.4}", rng.random_range(-180.0..180.0)),
        },
        "timezone": {"offset": offset, "description": description},
    })
}

fn login(rng: &mut StdRng, username: String) -> Value {
    let uuid = uuid::Builder::from_random_bytes(rng.random()).into_uuid();
    let (password, salt) = (fill(rng, "aaaaaa##"), fill(rng, "aAa#AaAa"));
    let hash = Sha256::digest(format!("{password}{salt}"));
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    json!({
        "uuid": Uuid::to_string(&uuid),
        "username": username,
        "password": password,
        "salt": salt,
        // Digests that nobody checks: only their shape is the API's.
        "md5": hexadecimal(&hash[..16]),
        "sha1": hexadecimal(&hash[..20]),
        "sha256": hexadecimal(&hash),
    })
}

fn username(rng: &mut StdRng) -> String {
    let colour = pick(
        rng,
        &[
            "red", "golden", "silver", "organic", "lazy", "tiny", "happy",
        ],
    );
    let animal = pick(
        rng,
        &["bear", "koala", "lion", "peacock", "frog", "zebra", "wolf"],
    );
    format!("{colour}{animal}{}", rng.random_range(100..1000))
}

/// `first.last@example.com`, without diacritics; the user name where the letters aren't Latin.
fn email(first: &str, last: &str, username: &str) -> String {
    let (first, last) = (plain(first), plain(last));
    match first.is_empty() || last.is_empty() {
        true => format!("{username}@example.com"),
        false => format!("{first}.{last}@example.com"),
    }
}

fn plain(name: &str) -> String {
    let mut plain = String::new();
    for letter in name.chars().flat_map(char::to_lowercase) {
        match letter {
            'a'..='z' => plain.push(letter),
            'á' | 'à' | 'â' | 'ã' | 'å' => plain.push('a'),
            'ä' | 'æ' => plain.push_str("ae"),
            'ç' | 'ć' | 'č' => plain.push('c'),
            'é' | 'è' | 'ê' | 'ë' => plain.push('e'),
            'ğ' => plain.push('g'),
            'í' | 'î' | 'ï' | 'ı' => plain.push('i'),
            'ñ' => plain.push('n'),
            'ó' | 'ô' | 'õ' | 'ø' => plain.push('o'),
            'ö' => plain.push_str("oe"),
            'š' | 'ş' => plain.push('s'),
            'ß' => plain.push_str("ss"),
            'ú' | 'û' => plain.push('u'),
            'ü' => plain.push_str("ue"),
            'ž' => plain.push('z'),
            _ => {}
        }
    }
    plain
}

/// A moment so many years ago, and those years.
fn date(rng: &mut StdRng, years_ago: std::ops::Range<i64>) -> Value {
    let years = rng.random_range(years_ago);
    let ago = years * YEAR + rng.random_range(0..YEAR);
    let milliseconds = (TODAY - ago) * 1000 + rng.random_range(0..1000);
    let moment = Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    json!({"date": format!("{moment:.3}"), "age": years})
}

/// The pattern with `#` for a digit, `A` and `a` for a letter.
pub(crate) fn fill(rng: &mut StdRng, pattern: &str) -> String {
    let one = |symbol| match symbol {
        '#' => char::from(rng.random_range(b'0'..=b'9')),
        'A' => char::from(rng.random_range(b'A'..=b'Z')),
        'a' => char::from(rng.random_range(b'a'..=b'z')),
        other => other,
    };
    pattern.chars().map(one).collect()
}

/// One of the list, which is a constant that isn't empty.
pub(crate) fn pick<T: Copy>(rng: &mut StdRng, list: &[T]) -> T {
    *list.choose(rng).expect("lists of words aren't empty")
}

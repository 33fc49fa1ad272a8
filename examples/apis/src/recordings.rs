//! What others recorded, made up: RSVPs as Meetup streamed them, and starts and ends of sessions.

use jiff::Timestamp;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::random;
use crate::randomuser::{fill, pick};

const RSVPS: u64 = 5_000;
const VENUES: u64 = 120;
/// 2017-03-19T12:00:00Z, in milliseconds.
const FIRST_RSVP: u64 = 1_489_924_800_000;

const SESSIONS: u64 = 3_000;
const PLAYERS: u64 = 150;
const DAY: i64 = 86_400;
/// 2016-11-06T00:00:00Z: the last session was started before.
const PRESENT: i64 = 1_478_390_400;

/// RSVPs in the order in which they came.
pub(crate) fn rsvps(seed: &str) -> impl Iterator<Item = Value> {
    (0..RSVPS).map(move |index| rsvp(seed, index))
}

/// The RSVP at this place. Some come twice, some change their mind, some times go backwards.
fn rsvp(seed: &str, index: u64) -> Value {
    let rng = &mut random(seed, "rsvp", index);
    let number = index - rng.random_range(0..=index.min(5)) / 5;
    // Few venues have many RSVPs: the smaller of two numbers.
    let venue = rng.random_range(0..VENUES).min(rng.random_range(0..VENUES));
    let (venue, group) = places(seed, venue);
    let mut rsvp = json!({
        "venue": venue,
        "visibility": "public",
        "response": if rng.random_ratio(3, 4) { "yes" } else { "no" },
        "guests": rng.random_range(0..20u32).saturating_sub(17),
        "rsvp_id": 1_658_733_801 + number,
        "mtime": FIRST_RSVP + index * 400 - rng.random_range(0..1000),
        "event": {"event_id": fill(rng, "aaaaaaaaaaaa"), "event_name": "Meet & greet"},
        "group": group,
    });
    if let (Some(fields), true) = (rsvp.as_object_mut(), rng.random_ratio(1, 5)) {
        fields.shift_remove("venue");
    }
    rsvp
}

/// A venue and the group that meets there.
fn places(seed: &str, venue: u64) -> (Value, Value) {
    const NAMES: &[&str] = &[
        "Change Works Offices",
        "Caracola Building",
        "Café Vitus",
        "O'Hara's Pub & Grill",
        "Public Library, Room 2",
        "Geschäftsstelle <Süd>",
        "Кафе «Заря»",
    ];
    const CITIES: &[(&str, &str, f64, f64)] = &[
        ("Abu Dhabi", "ae", 24.47, 54.37),
        ("Maastricht", "nl", 50.85, 5.69),
        ("München", "de", 48.14, 11.58),
        ("Taipei", "tw", 25.03, 121.56),
        ("Hackensack", "us", 40.89, -74.04),
        ("São Paulo", "br", -23.55, -46.63),
    ];
    let rng = &mut random(seed, "venue", venue);
    let (city, country, latitude, longitude) = pick(rng, CITIES);
    // To a millionth of a degree, as the stream has them; 0 where nobody has looked.
    let mut near = |degrees: f64| ((degrees + rng.random_range(-0.1..0.1)) * 1e6).round() / 1e6;
    let (lat, lon) = (json!(near(latitude)), json!(near(longitude)));
    let known = rng.random_ratio(15, 16);
    let place = json!({
        "venue_name": pick(rng, NAMES),
        "lon": if known { lon } else { json!(0) },
        "lat": if known { lat } else { json!(0) },
        "venue_id": 19_712_922 + venue * 31,
    });
    let group = json!({
        "group_city": city, "group_country": country, "group_id": 8_440_372 + venue,
        "group_name": format!("Meeting in {city}"), "group_lat": latitude, "group_lon": longitude,
    });
    (place, group)
}

/// Starts and ends of sessions, those of one session behind each other, and so out of their order.
pub(crate) fn sessions(seed: &str) -> impl Iterator<Item = Value> {
    (0..SESSIONS).flat_map(move |index| session(seed, index))
}

/// A session's start, and its end where it was completed. Only a start has a country.
fn session(seed: &str, index: u64) -> Vec<Value> {
    let rng = &mut random(seed, "session", index);
    // Few players have many sessions.
    let player = rng
        .random_range(0..PLAYERS)
        .min(rng.random_range(0..PLAYERS));
    let (player_id, country) = player_of(seed, player);
    let session_id = fill_hex(rng);
    let days = match rng.random_ratio(1, 20) {
        true => rng.random_range(309..312), // from 2015-12-30 to 2016-01-01
        false => rng.random_range(0..10),
    };
    let last = if days == 0 { DAY / 2 } else { DAY };
    let start = (PRESENT - days * DAY - rng.random_range(1..last)) * 1_000_000
        + rng.random_range(0..1_000_000);
    let end = start + rng.random_range(1_000_000..7_200_000_000);
    let record = |event: &str, micros| {
        let ts = Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH);
        // The time without a zone, as it was recorded: it is UTC.
        let ts = format!("{ts:.6}").replace('Z', "");
        json!({"event": event, "player_id": player_id, "session_id": session_id, "ts": ts})
    };
    let mut records = vec![record("start", start)];
    if rng.random_ratio(999, 1000) {
        records[0]["country"] = country.into();
    }
    if rng.random_ratio(19, 20) {
        records.push(record("end", end));
    }
    records
}

fn player_of(seed: &str, player: u64) -> (String, &'static str) {
    const COUNTRIES: &[&str] = &[
        "IT", "FI", "LT", "CN", "NL", "BR", "US", "FR", "JP", "KE", "IN", "SE",
    ];
    let rng = &mut random(seed, "player", player);
    // The one that a reader of the example tries.
    let id = match player {
        0 => "876c25fb17ef465b9573db4e815cad62".to_owned(),
        _ => fill_hex(rng),
    };
    let country = if player == 0 {
        "IT"
    } else {
        pick(rng, COUNTRIES)
    };
    (id, country)
}

fn fill_hex(rng: &mut StdRng) -> String {
    format!("{:032x}", rng.random::<u128>())
}

//! The records of the counts: RSVPs in the shape of Meetup's stream, about 590 bytes each, a pure
//! function of the seed and the index. A few venues get many of them, most get few.

use super::mix;

const CITY: [&str; 8] = [
    "New York",
    "São Paulo",
    "København",
    "İstanbul",
    "Nantes",
    "Łódź",
    "Sevilla",
    "Napier",
];

/// Makes RSVPs.
#[derive(Clone, Copy)]
pub struct Rsvps {
    pub seed: u64,
    pub venues: u64,
}

impl Rsvps {
    /// The venue of an RSVP.
    pub fn venue(&self, index: u64) -> u64 {
        let bits = mix(self.seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // Of 53 random bits a fraction below 1; its square is small more often than large.
        let fraction = (bits >> 11) as f64 / (1u64 << 53) as f64;
        (self.venues as f64 * fraction * fraction) as u64
    }

    /// What doesn't change of a venue: city, latitude, longitude, name.
    pub fn facts(&self, venue: u64) -> [String; 4] {
        let bits = mix(self.seed ^ !venue);
        // They end in 1: nobody writes the same number in another way.
        let degrees = |from: i64, number: u64| format!("{}.{:03}1", from, number % 1000);
        [
            CITY[(bits >> 8) as usize % CITY.len()].into(),
            degrees(25 + (bits >> 16) as i64 % 24, bits >> 24),
            degrees(-60 - (bits >> 32) as i64 % 60, bits >> 40),
            format!("Venue {venue} of \u{201c}Ömer's\u{201d}"),
        ]
    }

    /// The record's value.
    pub fn json(&self, index: u64) -> String {
        let venue = self.venue(index);
        let [city, lat, lon, name] = self.facts(venue);
        let bits = mix(index);
        let (guests, member) = (bits % 3, bits % 300_000_000);
        let response = if bits.is_multiple_of(4) { "no" } else { "yes" };
        let (time, event) = (1_700_000_000_000 + index, bits % 500);
        format!(
            r#"{{"venue":{{"venue_name":"{name}","lon":{lon},"lat":{lat},"venue_id":{venue}}},"visibility":"public","response":"{response}","guests":{guests},"member":{{"member_id":{member},"photo":"https://photos.example.com/photos/member/9/b/{member}.jpeg","member_name":"Member {member}"}},"rsvp_id":{index},"mtime":{time},"event":{{"event_name":"Weekly meetup number {event}","event_id":"{member}","time":{time}}},"group":{{"group_city":"{city}","group_country":"us","group_id":{venue},"group_name":"Group of {city}","group_lon":{lon},"group_lat":{lat},"group_urlname":"group-{venue}"}}}}"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rsvps_are_json_of_the_expected_size_and_agree_with_their_venues() {
        let rsvps = Rsvps {
            seed: 1,
            venues: 2_000,
        };
        let mut bytes = 0;
        for index in 0..1000 {
            let json = rsvps.json(index);
            bytes += json.len();
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let venue = rsvps.venue(index);
            let [city, lat, lon, name] = rsvps.facts(venue);
            assert!(venue < 2_000);
            assert_eq!(value["venue"]["venue_id"], venue);
            assert_eq!(value["venue"]["venue_name"], name);
            assert_eq!(value["venue"]["lat"].to_string(), lat);
            assert_eq!(value["venue"]["lon"].to_string(), lon);
            assert_eq!(value["group"]["group_city"], city);
        }
        assert!((560..620).contains(&(bytes / 1000)), "{}", bytes / 1000);
    }
}

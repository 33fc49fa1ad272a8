//! Text that looks like what the field's name says.

use fake::{
    Fake,
    faker::{
        address::raw::{CityName, CountryCode, CountryName, StateName, StreetName, TimeZone},
        company::raw::CompanyName,
        internet::raw::{SafeEmail, Username},
        lorem::raw::{Sentence, Word},
        name::raw::{FirstName, LastName, Title},
        phone_number::raw::PhoneNumber,
    },
    locales::{DE_DE, EN, FR_FR, TR_TR},
};
use rand::RngExt;

use crate::source::generator::value::{birth, time, uuid};

/// What a text field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    BirthDate,
    City,
    Company,
    Country,
    CountryCode,
    Email,
    FirstName,
    FullName,
    Gender,
    Hash,
    LastName,
    Latitude,
    Longitude,
    Phone,
    Picture,
    Postcode,
    Sentence,
    State,
    Street,
    Time,
    TimeZone,
    Title,
    Url,
    Username,
    Uuid,
    Word,
}

/// The first part that is in the field's name decides.
const BY_NAME: [(&str, Text); 41] = [
    ("uuid", Text::Uuid),
    ("guid", Text::Uuid),
    ("first", Text::FirstName),
    ("given", Text::FirstName),
    ("last", Text::LastName),
    ("surname", Text::LastName),
    ("username", Text::Username),
    ("login", Text::Username),
    ("email", Text::Email),
    ("gender", Text::Gender),
    ("title", Text::Title),
    ("picture", Text::Picture),
    ("photo", Text::Picture),
    ("thumbnail", Text::Picture),
    ("medium", Text::Picture),
    ("large", Text::Picture),
    ("phone", Text::Phone),
    ("cell", Text::Phone),
    ("country_code", Text::CountryCode),
    ("nat", Text::CountryCode),
    ("country", Text::Country),
    ("city", Text::City),
    ("state", Text::State),
    ("street", Text::Street),
    ("address", Text::Street),
    ("postcode", Text::Postcode),
    ("post_code", Text::Postcode),
    ("zip", Text::Postcode),
    ("latitude", Text::Latitude),
    ("longitude", Text::Longitude),
    ("dob", Text::BirthDate),
    ("birth", Text::BirthDate),
    ("timezone", Text::TimeZone),
    ("date", Text::Time),
    ("time", Text::Time),
    ("url", Text::Url),
    ("company", Text::Company),
    ("sha", Text::Hash),
    ("md5", Text::Hash),
    ("description", Text::Sentence),
    ("name", Text::FullName),
];

impl Text {
    /// What a field of this name holds.
    pub fn for_field(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        if name == "id" || name.ends_with("_id") {
            return Text::Uuid;
        }
        let found = BY_NAME.iter().find(|(part, _)| name.contains(part));
        found.map_or(Text::Word, |(_, text)| *text)
    }

    /// A text of this kind.
    pub fn make(self, random: &mut impl RngExt) -> String {
        match self {
            Text::BirthDate => birth(random).date_naive().to_string(),
            Text::City => CityName(EN).fake_with_rng(random),
            Text::Company => CompanyName(EN).fake_with_rng(random),
            Text::Country => CountryName(EN).fake_with_rng(random),
            Text::CountryCode => CountryCode(EN).fake_with_rng(random),
            Text::Email => email(random),
            Text::FirstName => first_name(random),
            Text::FullName => format!("{} {}", first_name(random), last_name(random)),
            Text::Gender => pick(random, &["female", "male"]),
            Text::Hash => format!(
                "{:016x}{:016x}",
                random.random::<u64>(),
                random.random::<u64>()
            ),
            Text::LastName => last_name(random),
            Text::Latitude => format!("{:.4}", random.random_range(-90.0..90.0)),
            Text::Longitude => format!("{:.4}", random.random_range(-180.0..180.0)),
            Text::Phone => PhoneNumber(EN).fake_with_rng(random),
            Text::Picture => picture(random),
            Text::Postcode => random.random_range(10_000..100_000).to_string(),
            Text::Sentence => Sentence(EN, 3..8).fake_with_rng(random),
            Text::State => StateName(EN).fake_with_rng(random),
            Text::Street => StreetName(EN).fake_with_rng(random),
            Text::Time => time(random).to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            Text::TimeZone => TimeZone(EN).fake_with_rng(random),
            Text::Title => Title(EN).fake_with_rng(random),
            Text::Url => format!("https://example.com/{}", random.random_range(0..1_000_000)),
            Text::Username => Username(EN).fake_with_rng(random),
            Text::Uuid => uuid(random).to_string(),
            Text::Word => Word(EN).fake_with_rng(random),
        }
    }
}

/// Most names are English; some go beyond ASCII, as in the world.
fn first_name(random: &mut impl RngExt) -> String {
    match random.random_range(0..8) {
        0 => FirstName(FR_FR).fake_with_rng(random),
        1 => FirstName(DE_DE).fake_with_rng(random),
        2 => FirstName(TR_TR).fake_with_rng(random),
        _ => FirstName(EN).fake_with_rng(random),
    }
}

fn last_name(random: &mut impl RngExt) -> String {
    match random.random_range(0..8) {
        0 => LastName(FR_FR).fake_with_rng(random),
        1 => LastName(DE_DE).fake_with_rng(random),
        2 => LastName(TR_TR).fake_with_rng(random),
        _ => LastName(EN).fake_with_rng(random),
    }
}

fn email(random: &mut impl RngExt) -> String {
    let email: String = SafeEmail(EN).fake_with_rng(random);
    email.to_lowercase()
}

fn picture(random: &mut impl RngExt) -> String {
    let folder = pick(random, &["men", "women"]);
    let number = random.random_range(0..100);
    format!("https://example.com/portraits/{folder}/{number}.jpg")
}

fn pick(random: &mut impl RngExt, values: &[&str]) -> String {
    values[random.random_range(0..values.len())].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_fields_hold() {
        for (name, text) in [
            ("first_name", Text::FirstName),
            ("lastName", Text::LastName),
            ("user_id", Text::Uuid),
            ("post_code", Text::Postcode),
            ("registered_date", Text::Time),
            ("sha256", Text::Hash),
            ("x", Text::Word),
        ] {
            assert_eq!(Text::for_field(name), text, "{name}");
        }
    }
}

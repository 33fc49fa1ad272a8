//! The records of the projection: users in the shape of the Randomuser API, about 544 bytes each,
//! a pure function of the seed and the index; and the row that each must become.

use uuid::Uuid;

use super::mix;

const FIRST: [&str; 12] = [
    "Jennie",
    "Aubree",
    "Mason",
    "Elif",
    "Søren",
    "Noémie",
    "Oliver",
    "Ömer",
    "Katherine",
    "Luis",
    "Vanessa",
    "Rasmus",
];
const LAST: [&str; 12] = [
    "Nichols",
    "Fletcher",
    "Okumuş",
    "Christensen",
    "Durand",
    "Harris",
    "García",
    "Lehtonen",
    "Novák",
    "D'Souza",
    "Schmidt",
    "Walker",
];
const STREET: [&str; 6] = [
    "E Center St",
    "Rue de L'Abbé-Gillet",
    "Frederiksgade",
    "Mühlenweg",
    "Ellestraat",
    "Calle de Alcalá",
];
/// City, state, country.
const PLACE: [(&str, &str, &str); 8] = [
    ("Billings", "Michigan", "United States"),
    ("Cedar Rapids", "Iowa", "United States"),
    ("Århus", "Midtjylland", "Denmark"),
    ("Bursa", "Kırklareli", "Turkey"),
    ("Nantes", "Pays de la Loire", "France"),
    ("Kilkenny", "Leinster", "Ireland"),
    ("Sevilla", "Andalucía", "Spain"),
    ("Napier", "Hawke's Bay", "New Zealand"),
];

/// The columns of [`User::row`]; the id comes before them.
pub const TEXT_COLUMNS: [&str; 10] = [
    "first_name",
    "last_name",
    "gender",
    "address",
    "post_code",
    "email",
    "username",
    "registered_date",
    "phone",
    "picture",
];

/// The low bits of an id hold the record's index, so that a row tells which record it came from.
const INDEX_BITS: u32 = 62;

/// Makes users.
#[derive(Clone, Copy)]
pub struct Users {
    seed: u64,
}

/// One user, before it is a record or a row.
pub struct User {
    pub id: Uuid,
    bits: u64,
    index: u64,
}

impl Users {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    pub fn user(&self, index: u64) -> User {
        let bits = mix(self.seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let high = (mix(bits) & !0xf000) | 0x4000;
        let low = (0b10 << INDEX_BITS) | index;
        User {
            id: Uuid::from_u64_pair(high, low),
            bits,
            index,
        }
    }

    /// The index of the record with this id, if there is one.
    pub fn index_of(&self, id: Uuid) -> Option<u64> {
        let index = id.as_u64_pair().1 & ((1 << INDEX_BITS) - 1);
        (self.user(index).id == id).then_some(index)
    }
}

impl User {
    /// The record's value.
    pub fn json(&self) -> String {
        let [
            first,
            last,
            gender,
            _,
            _,
            email,
            username,
            registered,
            phone,
            picture,
        ] = self.row();
        let (city, state, country) = self.pick(&PLACE, 8);
        let (number, street) = (self.street_number(), self.pick(&STREET, 16));
        let postcode = match self.has_text_postcode() {
            true => format!("\"{}\"", self.postcode()),
            false => self.postcode(),
        };
        let (title, nat) = (self.title(), &country[..2].to_uppercase());
        let age = 18 + self.bits % 60;
        let id = self.id;
        format!(
            r#"{{"gender":"{gender}","name":{{"title":"{title}","first":"{first}","last":"{last}"}},"location":{{"street":{{"number":{number},"name":"{street}"}},"city":"{city}","state":"{state}","country":"{country}","postcode":{postcode}}},"email":"{email}","login":{{"uuid":"{id}","username":"{username}"}},"dob":{{"age":{age}}},"registered":{{"date":"{registered}","age":7}},"phone":"{phone}","id":{{"name":"SSN","value":null}},"picture":{{"medium":"{picture}"}},"nat":"{nat}"}}"#
        )
    }

    /// The cells of the row, in the order of [`TEXT_COLUMNS`].
    pub fn row(&self) -> [String; 10] {
        let (first, last) = (self.pick(&FIRST, 24), self.pick(&LAST, 32));
        let (city, state, country) = self.pick(&PLACE, 8);
        let (number, street) = (self.street_number(), self.pick(&STREET, 16));
        let (bits, index) = (self.bits, self.index);
        let women = bits & 1 == 0;
        [
            first.into(),
            last.into(),
            if women { "female" } else { "male" }.into(),
            format!("{number} {street}, {city}, {state}, {country}"),
            self.postcode(),
            format!("user.{index}@example.com"),
            format!("yellowpeacock{}", bits % 100_000),
            format!(
                "20{:02}-0{}-2{}T05:52:38.952Z",
                bits % 24,
                1 + bits % 9,
                bits % 9
            ),
            format!("({:03}) {:03}-{:04}", bits % 997, bits % 991, bits % 9973),
            format!(
                "https://randomuser.me/api/portraits/med/{}/{}.jpg",
                if women { "women" } else { "men" },
                bits % 100
            ),
        ]
    }

    fn title(&self) -> &'static str {
        if self.bits & 1 == 0 { "Ms" } else { "Mr" }
    }

    fn street_number(&self) -> u64 {
        1 + self.bits % 9999
    }

    /// Some countries' post codes aren't numbers, and the API gives those as text.
    fn has_text_postcode(&self) -> bool {
        self.bits % 10 == 3
    }

    fn postcode(&self) -> String {
        let digits = 10_000 + self.bits % 89_999;
        match self.has_text_postcode() {
            true => format!("K{digits} 0X"),
            false => digits.to_string(),
        }
    }

    fn pick<T: Copy>(&self, from: &[T], shift: u32) -> T {
        from[(self.bits >> shift) as usize % from.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_json_of_the_expected_size_and_agree_with_their_rows() {
        let users = Users::new(1);
        let mut bytes = 0;
        for index in 0..1000 {
            let user = users.user(index);
            let json = user.json();
            bytes += json.len();
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            let row = user.row();
            assert_eq!(value["name"]["first"], row[0]);
            assert_eq!(value["login"]["uuid"], user.id.to_string());
            assert_eq!(value["picture"]["medium"], row[9]);
            assert_eq!(users.index_of(user.id), Some(index));
        }
        assert!((520..570).contains(&(bytes / 1000)), "{}", bytes / 1000);
    }

    #[test]
    fn an_id_of_another_seed_is_nobodys() {
        assert_eq!(Users::new(1).index_of(Users::new(2).user(7).id), None);
    }
}

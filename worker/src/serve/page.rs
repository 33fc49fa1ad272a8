//! Tokens of pages: where Cassandra goes on, sealed. A token that was made up or changed, or that
//! belongs to another query, could make Cassandra read what the endpoint doesn't give.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use scylla::response::PagingState;
use sha2::Sha256;

use super::problem::Problem;
use crate::config::{ConfigError, Credentials};

const SEAL: usize = 16;

/// Seals the tokens. Its key is made from the mounted secrets, and so it is the same in all pods
/// and after a restart.
pub struct Seal(Hmac<Sha256>);

impl Seal {
    pub fn new(credentials: &Credentials) -> Result<Self, ConfigError> {
        use millstream_api::worker::credentials::{
            CASSANDRA_PASSWORD, SERVE_API_KEYS, SERVE_PASSWORDS,
        };
        let mut key = b"millstream page".to_vec();
        for file in [CASSANDRA_PASSWORD, SERVE_API_KEYS, SERVE_PASSWORDS] {
            let secret = credentials.read(file)?.unwrap_or_default();
            key.extend((secret.len() as u64).to_be_bytes());
            key.extend(secret.into_bytes());
        }
        // A key of any length will do.
        let mac = Hmac::new_from_slice(&key).map_err(|_| ConfigError::Missing {
            what: "a key",
            path: CASSANDRA_PASSWORD.into(),
        })?;
        Ok(Seal(mac))
    }

    fn of(&self, query: &str, state: &[u8]) -> [u8; SEAL] {
        let length = (query.len() as u64).to_be_bytes();
        let mac = self
            .0
            .clone()
            .chain_update(length)
            .chain_update(query)
            .chain_update(state);
        let whole = mac.finalize().into_bytes();
        let mut seal = [0; SEAL];
        seal.copy_from_slice(&whole[..SEAL]);
        seal
    }

    /// The token for the page that begins here.
    pub fn token(&self, query: &str, state: &PagingState) -> Option<String> {
        let state = state.as_bytes_slice()?;
        let sealed = [&self.of(query, state)[..], &state[..]].concat();
        Some(BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Where the page begins.
    pub fn open(&self, query: &str, token: &str) -> Result<PagingState, Problem> {
        let says = "isn't a token that an answer to this very query gave";
        let wrong = || Problem::parameter("page", says);
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
        let (seal, state) = sealed.split_at_checked(SEAL).ok_or_else(wrong)?;
        let differs = seal
            .iter()
            .zip(self.of(query, state))
            .fold(0, |all, (a, b)| all | (a ^ b));
        if std::hint::black_box(differs) != 0 {
            return Err(wrong());
        }
        Ok(PagingState::new_from_raw_bytes(state))
    }
}

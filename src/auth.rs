//! API keys: who is asking, and whose cache they may share.
//!
//! Keys are kept and compared as BLAKE3 digests, every configured one each time and in constant time, so neither the keys nor
//! how far a guess was right can be read off. With no key configured everybody is the one anonymous tenant.

use crate::error::ApiError;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use std::fmt;
use subtle::{Choice, ConstantTimeEq};

/// Whose request it is. Prefix-cache blocks are shared only within one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Which of the configured keys, from 0; `None` without keys.
    pub key_idx: Option<usize>,
    /// Start of every cache salt of this tenant; 0 without keys.
    pub salt: u64,
}

impl Tenant {
    /// Everybody, where no keys are configured.
    pub const ANONYMOUS: Self = Self { key_idx: None, salt: 0 };
}

/// The configured keys.
#[derive(Default)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// From the keys themselves, which are not kept.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self { digests: keys.into_iter().map(digest).collect() }
    }

    /// How many there are; with none every request is let in.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whose request this is, by `Authorization: Bearer KEY` or `x-api-key: KEY`.
    ///
    /// # Errors
    /// 401 `invalid_api_key` if keys are configured and none of them was sent.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Tenant, ApiError> {
        if self.digests.is_empty() {
            return Ok(Tenant::ANONYMOUS);
        }
        let Some(key) = key_of(headers) else {
            return Err(ApiError::invalid_api_key(
                "no API key was sent; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            ));
        };
        self.find(key).ok_or_else(|| ApiError::invalid_api_key("the API key is not known to this server"))
    }

    fn find(&self, key: &[u8]) -> Option<Tenant> {
        let sent = *blake3::hash(key).as_bytes();
        let mut found = None;
        for (key_idx, digest) in self.digests.iter().enumerate() {
            let same: Choice = digest.ct_eq(&sent);
            if bool::from(same) {
                found = Some(Tenant { key_idx: Some(key_idx), salt: salt_of(digest) });
            }
        }
        found
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({} keys)", self.digests.len())
    }
}

fn digest(key: &str) -> [u8; 32] {
    *blake3::hash(key.as_bytes()).as_bytes()
}

/// The same for a key in every run, different between keys, and of no help in finding the key.
fn salt_of(digest: &[u8; 32]) -> u64 {
    let hash = blake3::derive_key("tokenmill tenant cache salt v1", digest);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    // 0 is the anonymous tenant's.
    u64::from_le_bytes(bytes).max(1)
}

fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii());
    }
    headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn without_keys_everybody_is_anonymous() {
        let keys = ApiKeys::default();
        assert_eq!(keys.authenticate(&HeaderMap::new()).unwrap(), Tenant::ANONYMOUS);
        assert_eq!(keys.authenticate(&with("authorization", "Bearer x")).unwrap(), Tenant::ANONYMOUS);
    }

    #[test]
    fn a_key_names_a_tenant_with_a_salt_of_its_own() {
        let keys = ApiKeys::new(["alpha", "beta"]);
        let alpha = keys.authenticate(&with("authorization", "Bearer alpha")).unwrap();
        let beta = keys.authenticate(&with("x-api-key", "beta")).unwrap();
        assert_eq!((alpha.key_idx, beta.key_idx), (Some(0), Some(1)));
        assert!(alpha.salt != beta.salt && alpha.salt != 0);
        assert_eq!(ApiKeys::new(["x", "alpha"]).authenticate(&with("x-api-key", "alpha")).unwrap().salt, alpha.salt);
        assert_eq!(keys.authenticate(&with("authorization", "bearer  alpha ")).unwrap(), alpha);
    }

    #[test]
    fn anything_else_is_401() {
        let keys = ApiKeys::new(["alpha"]);
        for headers in [
            HeaderMap::new(),
            with("authorization", "Bearer alph"),
            with("authorization", "Bearer alphaa"),
            with("authorization", "Basic alpha"),
            with("authorization", "alpha"),
            with("authorization", "Bearer "),
            with("x-api-key", ""),
        ] {
            assert_eq!(keys.authenticate(&headers).unwrap_err().status(), 401, "{headers:?}");
        }
        assert!(!format!("{keys:?}").contains("alpha"));
    }
}

//! Names that nobody else has.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

/// Makes nonces: different at each call, in every process.
pub type Nonces = Arc<dyn Fn() -> String + Send + Sync>;

/// From the randomness that the standard library takes from the operating system for its hash maps.
pub fn random_nonces() -> Nonces {
    Arc::new(nonce)
}

/// A name that nobody else has: 16 hexadecimal digits.
pub fn nonce() -> String {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}

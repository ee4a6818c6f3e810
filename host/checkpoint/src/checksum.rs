//! The one checksum of checkpoints: XXH3 with 128 bits, as 32 hexadecimal digits.
//!
//! It finds damage (a truncated file, a flipped bit), not malice: who can write to the store can write anything.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Of bytes at hand.
pub fn of(content: &[u8]) -> String {
    format!("{:032x}", xxh3_128(content))
}

/// Of bytes that pass by.
#[derive(Default)]
pub struct Running {
    hash: Box<Xxh3>,
    bytes: u64,
}

impl Running {
    /// Takes the next bytes in.
    pub fn update(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.bytes += piece.len() as u64;
    }

    /// How many bytes passed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The checksum of all that passed.
    pub fn finish(&self) -> String {
        format!("{:032x}", self.hash.digest128())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_checksum_of_the_whole() {
        let content: Vec<u8> = (0..10_000_u32).map(|i| (i * 7) as u8).collect();
        let mut running = Running::default();
        content.chunks(333).for_each(|piece| running.update(piece));
        assert_eq!((running.bytes(), running.finish()), (10_000, of(&content)));
        assert_ne!(of(&content), of(&content[1..]));
    }
}

//! What workers send each other, as it is on the wire. A frame is two lengths (of 4 bytes, little-endian), a message of
//! `proto/cluster.proto`, and the rows it speaks of, if it does. Rows are neither copied on their way out nor on their way
//! in, but by the system.

use std::collections::VecDeque;
use std::io::IoSlice;

use arrow::buffer::Buffer;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;
use tidemill_core::{Error, Result};

use crate::{MAX_MESSAGE_BYTES, proto};

/// Of the two lengths.
pub const LENGTHS_BYTES: usize = 8;
/// Messages without their rows are small.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// What is smaller is copied, for a piece of its own costs more.
const PIECE_BYTES: usize = 1 << 10;

/// A frame, and its rows as this end has them.
#[derive(Clone, Debug, Default)]
pub struct Parcel<R> {
    /// What it says.
    pub frame: proto::Frame,
    /// Empty, if it says nothing of rows.
    pub rows: R,
}

/// A frame to be sent, with the pieces of its rows.
pub type Outbound = Parcel<Vec<Buffer>>;
/// A frame that arrived.
pub type Inbound = Parcel<Bytes>;

impl<R: Default> From<proto::Frame> for Parcel<R> {
    fn from(frame: proto::Frame) -> Self {
        Self { frame, rows: R::default() }
    }
}

/// How long the parts of a frame are.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// Of the message, in bytes.
    pub message: usize,
    /// Of the rows, in bytes.
    pub rows: usize,
}

impl Lengths {
    /// Out of what begins a frame.
    ///
    /// # Errors
    /// No frame is so long: whoever sends this is no worker.
    pub fn read(mut from: impl Buf) -> Result<Self> {
        let mut next = || from.try_get_u32_le().map(|bytes| bytes as usize).map_err(|e| wrong(&e.to_string()));
        let lengths = Self { message: next()?, rows: next()? };
        if lengths.message > MAX_HEAD_BYTES || lengths.rows > MAX_MESSAGE_BYTES {
            return Err(wrong("has no length that one can have"));
        }
        Ok(lengths)
    }
}

impl Inbound {
    /// Out of the parts of a frame.
    pub fn decode(message: impl Buf, rows: Bytes) -> Result<Self> {
        let frame = proto::Frame::decode(message).map_err(|e| wrong(&format!("can't be read: {e}")))?;
        Ok(Self { frame, rows })
    }
}

fn wrong(what: &str) -> Error {
    Error::invalid(format!("a frame of another worker {what}"))
}

/// Frames on their way out, as pieces of memory that are written one after the other.
#[derive(Debug, Default)]
pub struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// Behind the pieces.
    small: BytesMut,
    remaining: usize,
}

impl Outgoing {
    /// Adds a frame.
    ///
    /// # Errors
    /// Nobody would take it: it is too long.
    pub fn put(&mut self, parcel: Outbound) -> Result<()> {
        let Parcel { frame, rows } = parcel;
        let (message, bytes) = (frame.encoded_len(), rows.iter().map(Buffer::len).sum::<usize>());
        if message > MAX_HEAD_BYTES || bytes > MAX_MESSAGE_BYTES {
            return Err(Error::invalid(format!(
                "a batch of {bytes} bytes is too large to be sent to another worker, which takes {MAX_MESSAGE_BYTES}"
            ))
            .mend("Give the job smaller batches: [job] batch-rows."));
        }
        self.small.put_u32_le(message as u32);
        self.small.put_u32_le(bytes as u32);
        frame.encode(&mut self.small).map_err(|e| Error::internal(e.to_string()))?;
        self.remaining += LENGTHS_BYTES + message + bytes;
        for piece in rows {
            if piece.len() < PIECE_BYTES {
                self.small.put_slice(&piece);
            } else {
                self.pieces.extend((!self.small.is_empty()).then(|| self.small.split().freeze()));
                self.pieces.push_back(Bytes::from_owner(piece));
            }
        }
        Ok(())
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&self.small, |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.pieces.iter().map(|piece| &**piece).chain((!self.small.is_empty()).then_some(&*self.small));
        into.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut by: usize) {
        self.remaining -= by;
        while let Some(piece) = self.pieces.front_mut() {
            if by < piece.len() {
                return piece.advance(by);
            }
            by -= piece.len();
            self.pieces.pop_front();
        }
        self.small.advance(by);
    }
}

#[cfg(test)]
mod tests {
    use proto::frame::Content;

    use super::*;

    fn frame(edge: u32) -> proto::Frame {
        proto::Frame {
            edge,
            content: Some(Content::Rows(proto::Rows { timed: true, bytes: 7, packed: Vec::new() })),
            ..Default::default()
        }
    }

    fn parcels() -> Vec<Outbound> {
        let rows = |lengths: &[usize]| {
            lengths.iter().enumerate().map(|(at, bytes)| Buffer::from(vec![at as u8; *bytes])).collect()
        };
        let of = |(edge, lengths): (u32, &[usize])| Parcel { frame: frame(edge), rows: rows(lengths) };
        vec![of((0, &[])), of((1, &[3, 5_000, 9, 2_000])), of((2, &[10_000])), of((3, &[1]))]
    }

    #[test]
    fn frames_arrive_as_they_were_however_they_are_cut() {
        for step in [1, 7, 1_500, usize::MAX] {
            let mut outgoing = Outgoing::default();
            parcels().into_iter().for_each(|parcel| outgoing.put(parcel).unwrap());
            let mut wire = Vec::new();
            while outgoing.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = outgoing.chunks_vectored(&mut slices);
                let offered: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                let written = offered.len().min(step);
                wire.extend(&offered[..written]);
                outgoing.advance(written);
            }
            let mut wire = Bytes::from(wire);
            for sent in parcels() {
                let lengths = Lengths::read(wire.split_to(LENGTHS_BYTES)).unwrap();
                let message = wire.split_to(lengths.message);
                let arrived = Inbound::decode(message, wire.split_to(lengths.rows)).unwrap();
                assert_eq!(arrived.frame, sent.frame);
                assert_eq!(arrived.rows, sent.rows.iter().flat_map(|piece| piece.to_vec()).collect::<Vec<_>>());
            }
            assert!(wire.is_empty());
        }
    }

    #[test]
    fn who_is_no_worker_is_known_by_the_first_bytes() {
        assert!(Lengths::read(&b"GET / HTTP/1.1"[..]).is_err());
        assert!(Lengths::read(&[0u8; 7][..]).is_err());
        assert!(Lengths::read(&[0, 0, 1, 0, 0, 0, 0, 16][..]).is_ok());
        assert!(Lengths::read(&[1, 0, 1, 0, 0, 0, 0, 0][..]).is_err());
        assert!(Lengths::read(&[0, 0, 0, 0, 1, 0, 0, 16][..]).is_err());
        assert!(Inbound::decode(&b"\xff\xff"[..], Bytes::new()).is_err());
    }
}

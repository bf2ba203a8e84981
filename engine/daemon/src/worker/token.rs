//! What a ring operation was for, packed into the 61 bits of its token.

use towpath_core::session::Side;

const INDEX_BITS: u32 = 32;
const GENERATION_BITS: u32 = 22;
const KIND_SHIFT: u32 = INDEX_BITS + GENERATION_BITS;

/// Highest generation of a slot; the next one starts over.
pub(super) const GENERATION_MAX: u32 = (1 << GENERATION_BITS) - 1;

/// One use of one slot of a table: a key of an earlier use finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// What an operation was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Accepting at a listener.
    Accept(u32),
    /// Waiting for a leg to be ready, for the path that reads this side.
    Await(Key, Side),
    /// Connecting to a real server.
    Connect(Key),
    /// Frames on this port, in its so-manieth opening.
    Frames(Key),
    /// Receiving from a client of a UDP listener.
    Listen(u32),
    /// Cancelling or closing: nobody waits for it.
    Nothing,
    /// Receiving from this side.
    Receive(Key, Side),
    /// Receiving from the real server of a UDP session.
    Reply(Key),
    /// Sending this outgoing buffer, by a leg with TLS.
    Sealed(u16),
    /// Sending to this side.
    Send(Key, Side),
    /// The eventfd of the worker's seat.
    Wake,
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        let (kind, key) = match self {
            Token::Nothing => (0, None),
            Token::Wake => (1, None),
            Token::Accept(index) => (2, Some(Key { index, generation: 0 })),
            Token::Listen(index) => (3, Some(Key { index, generation: 0 })),
            Token::Connect(key) => (4, Some(key)),
            Token::Reply(key) => (5, Some(key)),
            Token::Receive(key, Side::Client) => (6, Some(key)),
            Token::Receive(key, Side::Server) => (7, Some(key)),
            Token::Send(key, Side::Client) => (8, Some(key)),
            Token::Send(key, Side::Server) => (9, Some(key)),
            Token::Await(key, Side::Client) => (10, Some(key)),
            Token::Await(key, Side::Server) => (11, Some(key)),
            Token::Frames(key) => (12, Some(key)),
            Token::Sealed(buffer) => (13, Some(Key { index: u32::from(buffer), generation: 0 })),
        };
        let key = key.map_or(0, |key| u64::from(key.generation) << INDEX_BITS | u64::from(key.index));
        (kind << KIND_SHIFT) | key
    }

    /// # Panics
    /// If the token is not one of ours.
    pub(super) fn unpack(token: u64) -> Token {
        let index = token as u32;
        let key = Key { index, generation: (token >> INDEX_BITS) as u32 & GENERATION_MAX };
        match token >> KIND_SHIFT {
            0 => Token::Nothing,
            1 => Token::Wake,
            2 => Token::Accept(index),
            3 => Token::Listen(index),
            4 => Token::Connect(key),
            5 => Token::Reply(key),
            6 => Token::Receive(key, Side::Client),
            7 => Token::Receive(key, Side::Server),
            8 => Token::Send(key, Side::Client),
            9 => Token::Send(key, Side::Server),
            10 => Token::Await(key, Side::Client),
            11 => Token::Await(key, Side::Server),
            12 => Token::Frames(key),
            13 => Token::Sealed(index as u16),
            kind => unreachable!("the ring returned a token of kind {kind} that nobody made"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_packing_and_stays_below_the_rings_own_bits() {
        let key = Key { index: u32::MAX, generation: GENERATION_MAX };
        let mut tokens = vec![Token::Nothing, Token::Wake, Token::Accept(7), Token::Listen(u32::MAX)];
        tokens.push(Token::Sealed(u16::MAX));
        tokens.extend([Token::Connect(key), Token::Reply(key), Token::Frames(key)]);
        for side in Side::BOTH {
            tokens.extend([Token::Receive(key, side), Token::Send(key, side), Token::Await(key, side)]);
        }
        for token in tokens {
            assert_eq!(Token::unpack(token.pack()), token);
            assert_eq!(token.pack() >> 61, 0);
        }
    }
}

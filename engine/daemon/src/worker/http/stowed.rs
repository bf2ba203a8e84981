//! What a client has sent before its time: behind a request that is not answered, or to a server that is not reached yet.

use towpath_core::Now;
use towpath_core::session::Side;

use super::super::Worker;
use super::super::pressure::{Kept, KeptBytes};
use super::super::token::Key;
use super::{Conversation, Stage};

/// Bytes of at most one receive buffer, in memory of their own. With TLS, where a buffer is large, they count as parts of records do: what all
/// connections of a worker keep is bounded, and who has kept longest gives way.
pub(super) struct Stowed {
    bytes: Vec<u8>,
    kept: Option<Kept>,
}

impl Stowed {
    /// Nothing yet; counted with `all`.
    pub(super) fn nothing(all: Option<&KeptBytes>) -> Stowed {
        Stowed { bytes: Vec::new(), kept: all.map(Kept::nothing) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes all of it.
    pub(super) fn take(&mut self) -> Vec<u8> {
        if let Some(kept) = self.kept.as_mut().filter(|_| !self.bytes.is_empty()) {
            kept.note(0, Now::default());
        }
        std::mem::take(&mut self.bytes)
    }

    /// Adds bytes behind those that are there.
    fn add(&mut self, more: &[u8], now: Now) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.extend_from_slice(more);
        self.put(bytes, now);
    }

    fn put(&mut self, bytes: Vec<u8>, now: Now) {
        if let Some(kept) = &mut self.kept {
            kept.note(bytes.capacity(), now);
        }
        self.bytes = bytes;
    }
}

impl Conversation {
    /// Whether something of the client is there for the exchange.
    pub(super) fn client_has_news(&self) -> bool {
        let inlet = &self.inlets[Side::Client.index()];
        if self.stowed.is_empty() { inlet.has_news() } else { !inlet.on_hold }
    }

    /// Since when bytes are stowed that count with parts of records.
    pub(in super::super) fn stowed_since(&self) -> Option<Now> {
        self.stowed.kept.as_ref().and_then(Kept::since)
    }
}

impl Worker {
    /// Gives a spoke what its client has sent.
    pub(in super::super) fn stow_for(&mut self, key: Key, bytes: &[u8]) {
        let now = self.now;
        if let Some(conversation) = self.conversation(key).filter(|conversation| conversation.ending.is_none()) {
            conversation.stowed.add(bytes, now);
        }
    }

    /// Bytes of the client that no server's leg has taken.
    pub(in super::super) fn untaken_bytes(&self, key: Key) -> Option<usize> {
        let conversation = self.relays.get(key)?.http.as_ref()?;
        Some(conversation.stowed.bytes.len() + conversation.outlets[Side::Server.index()].made_bytes())
    }

    /// Gives back the buffer with what the client has sent before its time. Bodies on their way to a server that is there keep theirs.
    pub(super) fn stow(&mut self, key: Key) {
        let Worker { relays, ring, now, .. } = self;
        let Some(relay) = relays.get_mut(key) else { return };
        let held = relay.http.as_ref().and_then(|conversation| conversation.inlets[Side::Client.index()].held);
        let Some(chunk) = held else { return };
        let range = relay.chunk_range(Side::Client, chunk);
        let Some(conversation) = relay.http.as_deref_mut() else { return };
        let inlet = &mut conversation.inlets[Side::Client.index()];
        let before_time = inlet.on_hold || matches!(conversation.stage, Stage::Between | Stage::Routed);
        if conversation.ending.is_some() || !before_time {
            return;
        }
        inlet.held = None;
        let mut bytes = conversation.stowed.take();
        bytes.extend_from_slice(ring.held(range));
        conversation.stowed.put(bytes, *now);
        ring.recycle(chunk.buffer);
    }

    /// Keeps what a turn has not taken of what was stowed.
    pub(super) fn stow_again(&mut self, key: Key, mut stowed: Vec<u8>, consumed: usize) {
        let now = self.now;
        let Some(conversation) = self.conversation(key).filter(|conversation| !conversation.is_stopping()) else {
            return;
        };
        stowed.drain(..consumed.min(stowed.len()));
        if !stowed.is_empty() {
            conversation.stowed.put(stowed, now);
        }
    }
}

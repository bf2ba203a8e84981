//! A table of sessions with a fixed limit: slots are reused, keys are not.

use super::token::{GENERATION_MAX, Key};

/// Values of `T` in numbered slots, `max` of them at most; memory grows with the most that were ever held.
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    max: u32,
}

struct Slot<T> {
    generation: u32,
    value: Option<Box<T>>,
}

impl<T> Slab<T> {
    pub(super) fn new(max: u32) -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new(), max }
    }

    /// Values held.
    pub(super) fn len(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// Slots there are, used or not.
    pub(super) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Takes a slot for `value`; gives it back when all are taken.
    pub(super) fn insert(&mut self, value: Box<T>) -> Result<Key, Box<T>> {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return Ok(Key { index, generation: slot.generation });
        }
        let index = self.slots.len() as u32;
        if index == self.max {
            return Err(value);
        }
        self.slots.push(Slot { generation: 0, value: Some(value) });
        Ok(Key { index, generation: 0 })
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.value.as_deref_mut()
    }

    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        slot.value.as_deref()
    }

    /// Frees the slot of `key`.
    pub(super) fn remove(&mut self, key: Key) -> Option<Box<T>> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = if slot.generation == GENERATION_MAX { 0 } else { slot.generation + 1 };
        self.free.push(key.index);
        Some(value)
    }

    /// The key under which slot `index` is in use.
    pub(super) fn key_at(&self, index: u32) -> Option<Key> {
        let slot = self.slots.get(index as usize)?;
        slot.value.as_ref().map(|_| Key { index, generation: slot.generation })
    }

    /// Every value with its key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().zip(0u32..).filter_map(|(slot, index)| {
            let value = slot.value.as_deref()?;
            Some((Key { index, generation: slot.generation }, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_finds_nothing_in_a_slot_that_is_used_again() {
        let mut slab = Slab::new(1);
        let first = slab.insert(Box::new('a')).expect("one place");
        assert!(slab.insert(Box::new('b')).is_err());
        assert_eq!(slab.remove(first), Some(Box::new('a')));
        let second = slab.insert(Box::new('c')).expect("one place");
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&'c')));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.len(), 1);
    }
}

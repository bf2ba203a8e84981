//! The addresses on our side of flows (VIPs, SNAT addresses, real servers), each kept once and named by 16 bits.
//!
//! There are as many as the configuration names, while clients are without number: so a flow of IPv6 needs no more room than one of IPv4.

use crate::packet::Ip;

use crate::random::mix;

/// Most addresses a book can hold; the numbers above are not addresses.
pub(super) const ADDRESSES_MAX: usize = 65_530;
/// No address in this place of the search table.
const EMPTY: u16 = u16::MAX;

pub(super) struct AddressBook {
    addresses: Box<[Address]>,
    /// Numbers in the order of their hashes, with linear probing; at most half full.
    places: Box<[u16]>,
    /// Numbers without an address; never grows past its first size.
    free: Vec<u16>,
    seed: [u64; 2],
}

#[derive(Clone, Copy)]
struct Address {
    octets: Ip,
    /// Flows that name it.
    uses: u32,
}

impl AddressBook {
    pub(super) fn new(addresses_max: usize, seed: [u64; 2]) -> AddressBook {
        let count = addresses_max.clamp(1, ADDRESSES_MAX);
        AddressBook {
            addresses: vec![Address { octets: Ip([0; 16]), uses: 0 }; count].into_boxed_slice(),
            places: vec![EMPTY; (2 * count).next_power_of_two()].into_boxed_slice(),
            free: (0..count as u16).rev().collect(),
            seed,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.addresses) + size_of_val(&*self.places) + self.free.capacity() * size_of::<u16>()
    }

    pub(super) fn len(&self) -> usize {
        self.addresses.len() - self.free.len()
    }

    /// The address of a number that [`hold`](Self::hold) gave.
    #[inline]
    pub(super) fn octets(&self, number: u16) -> Ip {
        self.addresses[usize::from(number)].octets
    }

    /// The number of an address, once more in use; `None` when the book is full.
    pub(super) fn hold(&mut self, octets: Ip) -> Option<u16> {
        let mut at = self.first_place(octets);
        loop {
            let number = self.places[at];
            if number == EMPTY {
                break;
            }
            let address = &mut self.addresses[usize::from(number)];
            if address.octets == octets {
                address.uses += 1;
                return Some(number);
            }
            at = self.after(at);
        }
        let number = self.free.pop()?;
        self.addresses[usize::from(number)] = Address { octets, uses: 1 };
        self.places[at] = number;
        Some(number)
    }

    /// Takes back one [`hold`](Self::hold).
    pub(super) fn release(&mut self, number: u16) {
        let address = &mut self.addresses[usize::from(number)];
        debug_assert!(address.uses > 0, "released as often as held");
        address.uses -= 1;
        if address.uses > 0 {
            return;
        }
        let mut hole = self.first_place(self.octets(number));
        while self.places[hole] != number {
            hole = self.after(hole);
        }
        // Later ones of the same run move up, unless that would put them before their first place.
        let mut at = self.after(hole);
        while self.places[at] != EMPTY {
            let first = self.first_place(self.octets(self.places[at]));
            if self.steps(first, at) >= self.steps(hole, at) {
                self.places[hole] = self.places[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.places[hole] = EMPTY;
        self.free.push(number);
    }

    fn first_place(&self, octets: Ip) -> usize {
        let bits = u128::from_be_bytes(octets.0);
        let hash = mix(mix(self.seed[0] ^ (bits >> 64) as u64) ^ self.seed[1] ^ bits as u64);
        hash as usize & (self.places.len() - 1)
    }

    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }

    fn steps(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn it_agrees_with_a_list_over_random_histories() {
        for seed in 1..=20 {
            let mut random = SplitMix64::new(seed);
            let mut book = AddressBook::new(16, [seed, 2]);
            let mut held: Vec<(u16, Ip)> = Vec::new();
            for _ in 0..3_000 {
                if random.below(100) < 55 {
                    let octets = Ip([random.below(24) as u8; 16]);
                    let known = held.iter().find(|(_, other)| *other == octets).map(|(number, _)| *number);
                    match book.hold(octets) {
                        Some(number) => {
                            assert_eq!(known.unwrap_or(number), number, "one address, one number");
                            held.push((number, octets));
                        }
                        None => assert!(known.is_none() && book.len() == 16),
                    }
                } else if !held.is_empty() {
                    let (number, _) = held.swap_remove(random.below(held.len() as u64) as usize);
                    book.release(number);
                }
                for &(number, octets) in &held {
                    assert_eq!(book.octets(number), octets);
                }
            }
            for (number, _) in held {
                book.release(number);
            }
            assert_eq!(book.len(), 0);
            assert!(book.places.iter().all(|&place| place == EMPTY));
        }
    }
}

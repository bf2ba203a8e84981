//! Cache lines asked for before they are read, so that the processor fetches many at a time.

/// Asks the processor to fetch the cache line at this address. A hint: it neither waits nor fails, whatever lies there. Only x86-64 has a stable
/// way to give it; elsewhere this does nothing.
#[inline(always)]
pub fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: PREFETCHT0 reads nothing into the program and raises no fault at any address (Intel SDM vol. 2, PREFETCHh).
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_is_wrong() {
        prefetch(std::ptr::null());
        prefetch(std::ptr::dangling());
        prefetch([1_u8; 64].as_ptr());
    }
}

//! Huge pages for memory that is read at random: one entry of the processor's address cache then spans 2 MiB, not 4 KiB.

use std::ops::Range;

/// Octets of a huge page on most machines; a multiple of the size of every page.
const HUGE_BYTES: usize = 2 << 20;

/// Not every C library names it (include/uapi/asm-generic/mman-common.h).
const MADV_COLLAPSE: libc::c_int = 25;

/// Asks the kernel to back `memory`, as far as it has whole huge pages, by such pages: what lies there already is moved at once, and what
/// comes later comes so. How much of it, in octets, was asked for and granted at once.
///
/// It is a wish: without such pages (`transparent_hugepage` is `never`, memory is scarce, Linux is older than 6.1) the memory is the same, but slower.
pub fn prefer_huge(memory: Range<*const u8>) -> usize {
    let start = memory.start.addr().next_multiple_of(HUGE_BYTES);
    let end = memory.end.addr() / HUGE_BYTES * HUGE_BYTES;
    let Some(length) = end.checked_sub(start).filter(|&length| length > 0) else { return 0 };
    let at = memory.start.with_addr(start).cast_mut().cast();
    // SAFETY: this advice changes which pages back a range, never what it holds, and a range that is not mapped is refused (madvise(2)).
    unsafe { libc::madvise(at, length, libc::MADV_HUGEPAGE) };
    // SAFETY: likewise.
    let collapsed = unsafe { libc::madvise(at, length, MADV_COLLAPSE) };
    if collapsed == 0 { length } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_holds_what_it_held() {
        let words: Vec<u64> = (0..1 << 20).collect();
        let Range { start, end } = words.as_ptr_range();
        let granted = prefer_huge(start.cast()..end.cast());
        assert!(granted <= size_of_val(&*words) && granted.is_multiple_of(HUGE_BYTES));
        assert!(words.iter().zip(0..).all(|(&word, expected)| word == expected));
    }

    #[test]
    fn less_than_a_page_is_left_alone() {
        let octets = [1_u8; 4096];
        assert_eq!(prefer_huge(octets.as_ptr_range()), 0);
        let nowhere = std::ptr::null();
        assert_eq!(prefer_huge(nowhere..nowhere), 0);
    }
}

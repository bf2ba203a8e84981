//! Memory that the kernel may write to: page-aligned, never moved, unmapped with its owner.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};

/// `len` bytes of memory that nothing else in this process refers to.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory with one owner; nothing in it belongs to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Reserves `len` bytes (> 0) of private anonymous memory, zeroed. Pages cost nothing until touched.
    pub(crate) fn new(len: usize) -> io::Result<Mapping> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
        Mapping::made(unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, -1, 0) }, len)
    }

    /// Maps the first `len` bytes (> 0) behind a descriptor that is mapped once only, shared with the kernel.
    pub(crate) fn shared(fd: &impl AsFd, len: usize) -> io::Result<Mapping> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let raw = fd.as_fd().as_raw_fd();
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
        Mapping::made(unsafe { libc::mmap(ptr::null_mut(), len, prot, libc::MAP_SHARED, raw, 0) }, len)
    }

    fn made(base: *mut libc::c_void, len: usize) -> io::Result<Mapping> {
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave a null address"))?;
        Ok(Mapping { base, len })
    }

    /// Address of the first byte; valid as long as `self`.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes in the mapping.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of the mmap that made it, unmapped only here.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

use super::*;
use crate::errno::check;
use std::thread;

/// `r0 = 0; exit`.
const NOTHING: [u64; 2] = [0xb7, 0x95];

fn open() -> Result<FastPath<1>, Unavailable> {
    let programs = Programs { carry: NOTHING.into(), filter: NOTHING.into() };
    FastPath::open([MapSize { element_octets: 8, elements: 1 }], |_| programs)
}

#[test]
fn without_the_right_it_says_so() {
    let refused = thread::spawn(|| {
        keep_capabilities(0).unwrap();
        open().map(|_| ()).unwrap_err()
    });
    let refused = refused.join().unwrap();
    assert!(matches!(refused, Unavailable::Privilege), "{refused}");
    assert!(refused.to_string().contains("CAP_BPF"), "{refused}");
}

#[test]
fn two_rights_are_enough() {
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_BPF: u32 = 39;
    match open() {
        Err(Unavailable::Privilege) => return eprintln!("not looked at: {}", Unavailable::Privilege),
        opened => drop(opened.unwrap()),
    }
    let attached = thread::spawn(|| {
        keep_capabilities(1 << CAP_NET_ADMIN | 1 << CAP_BPF).unwrap();
        open().unwrap().attach(1).unwrap()
    });
    attached.join().unwrap();
}

/// Takes all rights from the calling thread but these, by the number of their bit.
fn keep_capabilities(kept: u64) -> io::Result<()> {
    // _LINUX_CAPABILITY_VERSION_3, and this thread; effective, permitted and inheritable, the lower 32 bits of each first (capset(2)).
    let header = [0x2008_0522_u32, 0];
    let (low, high) = (kept as u32, (kept >> 32) as u32);
    let sets = [low, low, 0, high, high, 0];
    // SAFETY: the pointers name what capset(2) reads of this version; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    check(result as libc::c_int)?;
    Ok(())
}

#[test]
fn an_older_kernel_is_told_by_its_release() {
    for (release, expected) in [("6.5.13-amd64", Some((6, 5))), ("6.18", Some((6, 18))), ("x", None)] {
        assert_eq!(version(release), expected);
    }
    assert!(version("6.5.13-amd64").unwrap() < LINUX_MIN && version("6.6.0").unwrap() >= LINUX_MIN);
}

//! Names for things that outlive a snapshot: flows and sessions hold these, never pointers.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $raw);

        impl $name {
            /// The same number as an index into a table.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One VirtualService, stable over reloads as long as its name stays.
    ServiceId(u16)
);
id!(
    /// One RealServer (address and port), stable over reloads; counts and drain hang on it.
    RealServerId(u16)
);
impl RealServerId {
    /// In place of a real server, where a flow has none.
    pub const NOBODY: RealServerId = RealServerId(u16::MAX);
}

id!(
    /// Position of a member in the group of one service, valid within one snapshot.
    TargetIndex(u16)
);
id!(
    /// One worker, 0 to 255; at the same time its place in every reuseport group.
    WorkerId(u8)
);
id!(
    /// Virtual shard of a flow (design.md 5), 0 to 255.
    VShard(u8)
);
id!(
    /// Number of a snapshot; grows by one with each swap.
    Generation(u64)
);

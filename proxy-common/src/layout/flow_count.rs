//! `flow_counts`: how many keys came into the flows' tables, and how they left. What came less what left is what is
//! there, so that nobody has to walk a table to know how full it is.

use crate::datapath::flow::Stage;

/// What is counted of a table of flows, in keys. Programs count the first two, for each CPU; the rest is the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum FlowCount {
    /// A program wrote a key that was not there.
    Made = 0,
    /// A program removed one.
    Forgotten = 1,
    /// Swept: its flow's time was over.
    Expired = 2,
    /// Removed to make room: of a connection that was ending.
    Closing = 3,
    /// Removed to make room: of datagrams.
    Datagrams = 4,
    /// Removed to make room: of a connection that was silent.
    Idle = 5,
    /// The kernel evicted it, because the table had no room.
    Evicted = 6,
    /// Found there though nobody had counted it; less what was counted and was not there. Two's complement.
    Adopted = 7,
}

impl FlowCount {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Made,
        Self::Forgotten,
        Self::Expired,
        Self::Closing,
        Self::Datagrams,
        Self::Idle,
        Self::Evicted,
        Self::Adopted,
    ];
    /// How keys leave otherwise than by a packet.
    pub const REMOVALS: [Self; 5] =
        [Self::Expired, Self::Closing, Self::Datagrams, Self::Idle, Self::Evicted];

    /// Short name for metrics and tables, `snake_case`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Forgotten => "forgotten",
            Self::Expired => "expired",
            Self::Closing => "closing",
            Self::Datagrams => "datagrams",
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::Adopted => "adopted",
        }
    }

    /// One sentence for people.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Made => "Written by a packet.",
            Self::Forgotten => "Removed by a packet.",
            Self::Expired => "Silent for longer than netfilter would remember it.",
            Self::Closing => "Removed to make room: one side at least had ended the connection.",
            Self::Datagrams => "Removed to make room: datagrams.",
            Self::Idle => "Removed to make room: a connection that was silent for longer than others.",
            Self::Evicted => {
                "Evicted by the kernel, because the table had no room: whoever was not looked up for longest."
            }
            Self::Adopted => "Found there, and counted by nobody.",
        }
    }

    /// Entries of `flow_counts`: of four tables.
    pub const ENTRIES: u32 = 4 * Self::ALL.len() as u32;

    /// Its number in `flow_counts` for a table.
    #[inline(always)]
    pub const fn of(self, stage: Stage) -> u32 {
        stage as u32 * Self::ALL.len() as u32 + self as u32
    }
}

//! vipr: the agent and its command line, as a library.
//!
//! ```text
//!  API server
//!      │ watch event
//!      ▼
//!  watch ──Change──► model ──Desired──► plan ──Step──► dataplane ──bytes──► BPF maps
//!                                        ▲                 │                   │ lookup
//!                                        └──── Actual ─────┘                   ▼
//!                                         (read back)        call, packet ──► datapath ──Verdict──► …
//! ```
//!
//! The modules below stand in the order of that flow. `model` and `plan` are pure.

pub mod cli;
pub mod config;
pub mod dataplane;
pub mod events;
pub mod model;
pub mod plan;
pub mod reconcile;
pub mod report;
pub mod run;
pub mod serve;
pub mod text;
pub mod watch;

//! A lab of network namespaces.

pub mod control_plane;

//! Every way to a Service: family × protocol × plane × door × kind of Service × client × mode, one test for each wiring.
//! Each cell is judged by who answers, by the address that the server sees, and by the address that the answer is from.

mod matrix;
mod sctp;

use anyhow::Result;
use matrix::ground::Wired;
use matrix::holds;

#[test]
fn every_way_to_a_service_is_kube_proxys_over_routed_veths() -> Result<()> {
    holds(Wired::Routed)
}

#[test]
fn every_way_to_a_service_is_kube_proxys_over_a_bridge_that_asks_netfilter() -> Result<()> {
    holds(Wired::AskingBridge)
}

#[test]
fn every_way_to_a_service_is_kube_proxys_over_a_bridge_that_asks_nobody() -> Result<()> {
    holds(Wired::Bridge)
}

#[test]
fn every_way_to_a_service_is_kube_proxys_if_answers_leave_by_another_uplink() -> Result<()> {
    holds(Wired::TwoUplinks)
}

#[test]
fn every_way_to_a_service_is_kube_proxys_from_behind_a_device_without_link_layer() -> Result<()> {
    holds(Wired::Tun)
}

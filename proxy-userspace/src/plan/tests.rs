//! What a plan consists of, case by case. That it is safe and leads where it should is in `tests/properties.rs`.

use std::sync::Arc;

use proxy_common::{
    Address, Protocol,
    datapath::Endpoint,
    layout::{Backend, Device, DeviceRole, FrontendKey, FrontendKind, Pods, Policy, RangeKey, Spot},
};

use super::*;
use crate::model::{Attachment, Cidr, Family, Group, ObjectName, ServicePortName, Serving, Target};

fn name(service: &str) -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("shop", service),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

fn address(number: u32) -> Address {
    Address::from_v4_word(number.to_be())
}

fn vip(number: u32) -> FrontendKey {
    FrontendKey::new(address(0x0a60_0000 + number), 80, Protocol::Tcp)
}

/// 10.0.0.`first` and those that follow.
fn serving(first: u32, count: u32) -> Arc<Serving> {
    let endpoint = |i| Endpoint { address: address(0x0a00_0000 + first + i), port: 8080 };
    Arc::new(Serving { cluster_only: (0..count).map(endpoint).collect(), ..Serving::default() })
}

fn lead(desired: &mut Desired, key: FrontendKey, service: &str) {
    let target = Target { service: name(service), kind: FrontendKind::ClusterIp, host_denied: false };
    desired.frontends.insert(key, target);
}

/// A service with one address.
fn serve(desired: &mut Desired, service: &str, key: FrontendKey, serving: Arc<Serving>) {
    desired.services.insert(name(service), serving);
    lead(desired, key, service);
}

fn capacity(services: u32, backends: u32) -> Capacity {
    Capacity {
        frontends: 100,
        services,
        backends,
        local_addresses: 10,
        devices: 10,
        source_ranges: 100,
        masquerade: 100,
    }
}

/// A planner that has reached a state, and nothing is retired.
fn at(desired: &Desired, capacity: Capacity) -> Planner {
    let mut planner = Planner::new(Actual::default(), capacity);
    carry_out(&mut planner, desired);
    planner.done(&planner.reclaim());
    planner
}

fn carry_out(planner: &mut Planner, desired: &Desired) -> Vec<String> {
    let steps = planner.plan(desired, None).expect("room");
    planner.done(&steps);
    steps.iter().map(ToString::to_string).collect()
}

/// The step that brings the address of `key` into use, which stands in no word with another.
fn set_addresses(key: &FrontendKey) -> String {
    let Spot { word, bits } = Spot::of(&key.address());
    format!("set addresses {word} to {bits:#x}")
}

fn shop() -> Desired {
    let mut desired = Desired::default();
    serve(&mut desired, "a", vip(1), serving(0, 3));
    serve(&mut desired, "b", vip(2), serving(10, 2));
    desired
}

#[test]
fn a_first_plan_passes_a_fence_writes_what_is_led_to_and_then_leads_there() {
    let mut planner = Planner::new(Actual::default(), capacity(10, 100));
    let steps = carry_out(&mut planner, &shop());
    let expected = [
        "fence",
        "write extent 1 (3 endpoints)",
        "name service 0 shop/a:http/TCP/IPv4",
        "point service 0 at extent 1",
        "write extent 5 (2 endpoints)",
        "name service 1 shop/b:http/TCP/IPv4",
        "point service 1 at extent 5",
        "set ports 64.. to 0x10000",
        &set_addresses(&vip(1)),
        &set_addresses(&vip(2)),
        "put frontend 10.96.0.1:80/TCP → 0",
        "put frontend 10.96.0.2:80/TCP → 1",
    ];
    assert_eq!(steps, expected);
}

#[test]
fn one_endpoint_of_ten_thousand_services_with_twenty_each_is_two_steps() {
    let mut desired = Desired::default();
    for i in 0..10_000 {
        serve(&mut desired, &format!("service-{i:05}"), vip(i), serving(i * 20, 20));
    }
    let mut planner = at(&desired, need(&desired));
    let changed = name("service-05000");
    let mut serving = Serving::clone(&desired.services[&changed]);
    serving.cluster_only.pop();
    desired.services.insert(changed.clone(), Arc::new(serving));
    let touched = Touched { services: [changed].into(), ..Touched::default() };
    let steps = planner.plan(&desired, Some(&touched)).expect("room");
    assert!(
        matches!(&steps[..], [Step::WriteExtent { slots, .. }, Step::PointService { index: 5000, .. }] if slots.len() == 20),
        "{steps:?}"
    );
    assert_eq!(planner.plan(&desired, None), Ok(steps), "and so it is when everything is compared");
}

#[test]
fn the_lifetime_of_affinity_is_in_the_word_and_the_policy_in_the_extent() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(10, 100));
    let mut serving = Serving::clone(&desired.services[&name("a")]);
    serving.affinity_seconds = 10;
    desired.services.insert(name("a"), Arc::new(serving.clone()));
    assert_eq!(carry_out(&mut planner, &desired), ["point service 0 at extent 1"]);
    assert_eq!(planner.actual().services[&0].affinity_seconds, 10);
    serving.policy = Policy::ANY_ENDPOINTS;
    desired.services.insert(name("a"), Arc::new(serving));
    let steps = carry_out(&mut planner, &desired);
    assert_eq!(steps, ["write extent 8 (3 endpoints)", "point service 0 at extent 8"]);
    assert_eq!(planner.retired(), 4, "the old extent waits for a fence");
}

#[test]
fn a_service_that_goes_is_led_to_no_more_before_it_is_emptied() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(10, 100));
    desired.services.remove(&name("b"));
    desired.frontends.remove(&vip(2));
    let expected = [
        "delete frontend 10.96.0.2:80/TCP",
        &format!("set addresses {} to 0x0", Spot::of(&vip(2).address()).word),
        "point service 1 at extent 0",
        "remove the name of service 1",
    ];
    assert_eq!(carry_out(&mut planner, &desired), expected);
}

#[test]
fn an_index_goes_to_another_service_only_after_a_fence() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(2, 100));
    desired.services.remove(&name("b"));
    desired.frontends.remove(&vip(2));
    carry_out(&mut planner, &desired);
    assert_eq!(planner.retired(), 1 + 3, "an index and its slots");
    serve(&mut desired, "c", vip(3), serving(20, 1));
    let steps = planner.plan(&desired, None).expect("room");
    assert_eq!(steps[0], Step::Fence);
    assert!(matches!(steps[2], Step::NameService { index: 1, .. }), "{}", steps[2]);
    // Another plan does not forget that the fence was not passed.
    assert_eq!(planner.plan(&desired, None).expect("room")[0], Step::Fence);
    planner.done(&[Step::Fence]);
    assert!(!planner.plan(&desired, None).expect("room").contains(&Step::Fence));
}

#[test]
fn after_a_restart_no_free_index_is_taken_before_a_fence() {
    let mut desired = shop();
    let left = at(&desired, capacity(10, 100)).actual().clone();
    // Another agent may have freed any of them a moment ago.
    let mut planner = Planner::new(left, capacity(10, 100));
    assert_eq!((planner.plan(&desired, None), planner.retired()), (Ok(vec![]), 0));
    desired.services.insert(name("a"), serving(100, 3));
    serve(&mut desired, "c", vip(3), serving(20, 1));
    let steps = planner.plan(&desired, None).expect("room");
    assert!(matches!(steps[1], Step::PointService { index: 0, .. }), "what is served does not wait for it");
    assert_eq!(steps[2], Step::Fence);
    assert!(matches!(steps[5], Step::PointService { index: 2, .. }), "{}", steps[5]);
}

#[test]
fn a_service_that_goes_takes_along_whatever_leads_to_it() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(10, 100));
    desired.frontends.get_mut(&vip(2)).expect("a frontend").host_denied = true;
    assert_eq!(carry_out(&mut planner, &desired), ["put frontend 10.96.0.2:80/TCP → 1"]);
    desired.services.remove(&name("b"));
    let touched = Touched { services: [name("b")].into(), ..Touched::default() };
    let steps = planner.plan(&desired, Some(&touched)).expect("room");
    assert_eq!(steps[0], Step::DeleteFrontend { key: vip(2) });
}

fn text(planner: &mut Planner, desired: &Desired) -> Vec<String> {
    planner.plan(desired, None).expect("room").iter().map(ToString::to_string).collect()
}

#[test]
fn programs_come_to_a_device_before_the_first_frontend_and_leave_before_it_is_forgotten() {
    let mut desired = shop();
    let device = Device {
        mac: [0; 3],
        bridge_mac: [0; 3],
        header: 14,
        role: DeviceRole::Single,
        pods: Pods::InRange,
        version: Device::VERSION,
        masquerade_v4: [0; 16],
        masquerade_v6: [0; 16],
        host: 0,
        choices: 0,
    };
    desired.devices.insert(7, Attachment { name: "eth0".into(), device });
    desired.pod_ranges.insert(Cidr { address: [10, 0, 0, 0].into(), length: 8 });
    let mut planner = Planner::new(Actual::default(), capacity(10, 100));
    let steps = carry_out(&mut planner, &desired);
    assert_eq!(steps[0], "put range 10.0.0.0/8 of the pods");
    assert_eq!(steps[1], "put device 7 (Single, pods: InRange)");
    let frontend = steps.iter().position(|step| step.starts_with("put frontend")).expect("a frontend");
    assert_eq!(steps[frontend - 1], "attach to eth0 (7)");
    // A device that is renamed keeps its programs.
    desired.devices.insert(7, Attachment { name: "wan0".into(), device });
    assert!(text(&mut planner, &desired).is_empty());
    desired.devices.clear();
    desired.pod_ranges.clear();
    let touched = Touched { devices: true, ..Touched::default() };
    let gone = ["detach from device 7", "delete device 7", "delete range 10.0.0.0/8 of the pods"];
    let steps = planner.plan(&desired, Some(&touched)).expect("room");
    assert_eq!(steps.iter().map(ToString::to_string).collect::<Vec<_>>(), gone);
}

#[test]
fn tables_that_are_built_anew_change_nothing_about_what_is_attached() {
    let planner = Planner::new(Actual { attached: [7].into(), ..Actual::default() }, capacity(10, 100));
    let mut planner = planner.next_generation(capacity(20, 200));
    assert_eq!(text(&mut planner, &Desired::default()), ["detach from device 7"]);
}

#[test]
fn source_ranges_come_before_they_count_and_go_when_they_do_not() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(10, 100));
    let ranges = |desired: &mut Desired, ranges: &[[u8; 4]]| {
        let policy = if ranges.is_empty() { 0 } else { Policy::SOURCE_RANGES };
        let cidr = |address: &[u8; 4]| Cidr { address: (*address).into(), length: 32 };
        let source_ranges = ranges.iter().map(cidr).collect();
        let old = desired.services[&name("a")].as_ref().clone();
        desired.services.insert(name("a"), Arc::new(Serving { policy, source_ranges, ..old }));
    };
    ranges(&mut desired, &[[10, 0, 0, 1], [10, 0, 0, 2]]);
    let steps = carry_out(&mut planner, &desired);
    assert_eq!(steps[..2], ["put range 10.0.0.1/32 of service 0", "put range 10.0.0.2/32 of service 0"]);
    assert!(steps[3].starts_with("point service 0"), "{steps:?}");
    // Nothing else is different: no extent is written.
    ranges(&mut desired, &[[10, 0, 0, 2], [10, 0, 0, 3]]);
    let steps = carry_out(&mut planner, &desired);
    assert_eq!(steps, ["put range 10.0.0.3/32 of service 0", "delete range 10.0.0.1/32 of service 0"]);
    ranges(&mut desired, &[]);
    let steps = carry_out(&mut planner, &desired);
    assert!(steps[1].starts_with("point service 0") && steps[3].starts_with("delete range"), "{steps:?}");
    // A service that goes takes its ranges along, before its index is free.
    ranges(&mut desired, &[[10, 0, 0, 1]]);
    carry_out(&mut planner, &desired);
    desired.services.remove(&name("a"));
    desired.frontends.retain(|_, target| target.service != name("a"));
    let steps = carry_out(&mut planner, &desired);
    assert_eq!(steps.last().map(String::as_str), Some("delete range 10.0.0.1/32 of service 0"));
    assert!(planner.retired() > 0 && planner.actual().source_ranges.is_empty());
}

#[test]
fn cgroups_are_there_before_they_are_looked_for_and_stay_when_the_tables_are_read() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(10, 100));
    desired.left_pods.insert(ObjectName::new("default", "mesh"), Some(Group { id: 77, levels: 0b1000 }));
    desired.left_pods.insert(ObjectName::new("default", "new"), None);
    let put = ["put range of cgroup 77", "look for cgroups at levels 0b1000"];
    assert_eq!(carry_out(&mut planner, &desired), put);
    let mut next = Planner::new(planner.actual().clone(), capacity(10, 100));
    assert_eq!(text(&mut next, &desired), Vec::<String>::new(), "an agent that starts leaves them");
    desired.left_pods.clear();
    let gone = ["look for cgroups at levels 0b0", "delete range of cgroup 77"];
    assert_eq!(carry_out(&mut next, &desired), gone);
}

#[test]
fn ranges_of_nobody_are_found_and_removed() {
    let key = RangeKey::host(5, Address::LOOPBACK_V4);
    let mut left = Actual::default();
    left.put_range(key);
    let mut planner = Planner::new(left, capacity(10, 100));
    assert_eq!(text(&mut planner, &Desired::default()), ["delete range 127.0.0.1/32 of service 5"]);
}

#[test]
fn without_an_index_left_larger_tables_are_asked_for() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(2, 100));
    serve(&mut desired, "c", vip(3), serving(20, 1));
    let NoRoom { need } = planner.plan(&desired, None).expect_err("two of two are taken");
    assert!(need.services > 2 && need.backends >= 100);
    assert!(Planner::new(Actual::default(), need).plan(&desired, None).is_ok());
}

#[test]
fn a_plan_makes_room_itself_out_of_what_is_retired() {
    let mut desired = shop();
    // Slots 1 to 7 are in use, four are left.
    let mut planner = at(&desired, capacity(10, 12));
    desired.services.insert(name("a"), serving(100, 3));
    desired.services.insert(name("b"), serving(200, 2));
    let expected = [
        "write extent 8 (3 endpoints)",
        "point service 0 at extent 8",
        "fence",
        "clear 4 slots at 1",
        "write extent 1 (2 endpoints)",
        "point service 1 at extent 1",
    ];
    assert_eq!(carry_out(&mut planner, &desired), expected);
    assert_eq!(planner.reclaim(), [Step::Fence, Step::ClearExtent { base: 5, length: 3 }]);
}

#[test]
fn slots_in_pieces_that_are_too_small_are_no_room() {
    let mut desired = Desired::default();
    for (i, service) in ["a", "b", "c", "d"].into_iter().enumerate() {
        serve(&mut desired, service, vip(i as u32), serving(10 * i as u32, 1));
    }
    let mut planner = at(&desired, capacity(10, 9));
    for (gone, at) in [("a", 0), ("c", 2)] {
        desired.services.remove(&name(gone));
        desired.frontends.remove(&vip(at));
    }
    carry_out(&mut planner, &desired);
    desired.services.insert(name("b"), serving(50, 2));
    let NoRoom { need } = planner.plan(&desired, None).expect_err("two pieces of two slots");
    assert!(need.backends > 9);
    // Nothing was taken: two slots are still found.
    desired.services.insert(name("b"), serving(60, 1));
    assert!(planner.plan(&desired, None).is_ok());
}

#[test]
fn what_failed_is_in_the_next_plan_though_nothing_else_is_touched() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(10, 100));
    desired.services.insert(name("a"), serving(100, 3));
    let touched = Touched { services: [name("a")].into(), ..Touched::default() };
    let steps = planner.plan(&desired, Some(&touched)).expect("room");
    planner.done(&steps[..1]);
    // What was written and not pointed at is of no use.
    let again = planner.plan(&desired, Some(&Touched::default())).expect("room");
    let again_text: Vec<_> = again.iter().map(ToString::to_string).collect();
    assert_eq!(again_text, ["write extent 12 (3 endpoints)", "point service 0 at extent 12"]);
    assert_eq!(planner.retired(), 4);
    planner.done(&again);
    assert_eq!(planner.plan(&desired, Some(&Touched::default())), Ok(vec![]));
}

#[test]
fn services_whose_names_are_lost_are_found_by_what_leads_to_them() {
    let mut desired = shop();
    let mut left = at(&desired, capacity(10, 100)).actual().clone();
    left.names.clear();
    desired.services.insert(name("0"), serving(30, 1));
    let mut planner = Planner::new(left, capacity(10, 100));
    let steps = carry_out(&mut planner, &desired);
    assert!(steps.contains(&"name service 0 shop/a:http/TCP/IPv4".into()), "{steps:?}");
    assert!(steps.contains(&"name service 1 shop/b:http/TCP/IPv4".into()), "{steps:?}");
    assert!(steps.contains(&"name service 2 shop/0:http/TCP/IPv4".into()), "{steps:?}");
}

#[test]
fn slots_that_nothing_points_at_are_retired_when_the_tables_are_read() {
    let desired = shop();
    let mut left = at(&desired, capacity(10, 100)).actual().clone();
    left.backends.insert(20, Backend::extent(0, 1, 0, 0, 0));
    left.backends.insert(21, Backend::endpoint(0, address(1), 1));
    left.backends.insert(40, Backend::endpoint(7, address(1), 1));
    let mut planner = Planner::new(left, capacity(10, 100));
    assert_eq!(planner.plan(&desired, None), Ok(vec![]));
    assert_eq!(planner.retired(), 3);
    let clear = |base, length| Step::ClearExtent { base, length };
    assert_eq!(planner.reclaim(), [Step::Fence, clear(20, 2), clear(40, 1)]);
    planner.done(&planner.reclaim());
    assert_eq!((planner.retired(), planner.actual().backends.len()), (0, 7));
}

#[test]
fn an_extent_that_does_not_fit_together_is_written_anew_and_its_slots_are_retired() {
    let desired = shop();
    let whole = at(&desired, capacity(10, 100)).actual().clone();
    let foreign = Backend::endpoint(9, address(1), 1);
    for (slot, broken) in [(1, Backend::FREE), (1, foreign), (3, foreign), (4, Backend::FREE)] {
        let mut left = whole.clone();
        if broken == Backend::FREE {
            left.backends.remove(slot)
        } else {
            left.backends.insert(slot, broken)
        };
        let mut planner = Planner::new(left, capacity(10, 100));
        let steps = carry_out(&mut planner, &desired);
        assert_eq!(steps, ["write extent 8 (3 endpoints)", "point service 0 at extent 8"], "slot {slot}");
        planner.done(&planner.reclaim());
        assert_eq!(planner.actual().backends.len(), 7, "slot {slot}");
    }
}

#[test]
fn strange_words_are_replaced_wherever_they_point() {
    let desired = shop();
    let whole = at(&desired, capacity(10, 100)).actual().clone();
    for extent in [0, 3, 5, 99, 100, u32::MAX] {
        let mut left = whole.clone();
        left.services.insert(0, Service { extent, affinity_seconds: 1 });
        let mut planner = Planner::new(left, capacity(10, 100));
        carry_out(&mut planner, &desired);
        planner.done(&planner.reclaim());
        assert_eq!(planner.plan(&desired, None), Ok(vec![]));
        assert_eq!((planner.retired(), planner.actual().backends.len()), (0, 7), "word {extent}");
    }
}

#[test]
fn frontends_that_move_to_other_services_are_never_two_in_a_batch() {
    let mut desired = shop();
    lead(&mut desired, vip(3), "a");
    let mut planner = at(&desired, capacity(10, 100));
    for key in [vip(1), vip(3)] {
        lead(&mut desired, key, "b");
    }
    lead(&mut desired, vip(4), "a");
    lead(&mut desired, vip(5), "a");
    let expected = [
        &set_addresses(&vip(5)),
        &set_addresses(&vip(4)),
        "put frontend 10.96.0.1:80/TCP → 1",
        "fence",
        "put frontend 10.96.0.3:80/TCP → 1",
        "fence",
        "put frontend 10.96.0.4:80/TCP → 0",
        "put frontend 10.96.0.5:80/TCP → 0",
    ];
    assert_eq!(carry_out(&mut planner, &desired), expected);
}

#[test]
fn a_service_that_a_frontend_leaves_changes_after_it_has_left() {
    let mut desired = shop();
    lead(&mut desired, vip(3), "a");
    let mut planner = at(&desired, capacity(10, 100));
    lead(&mut desired, vip(3), "b");
    desired.services.insert(name("a"), serving(100, 1));
    desired.services.insert(name("b"), serving(200, 1));
    let expected = [
        "write extent 8 (1 endpoints)",
        "point service 1 at extent 8",
        "put frontend 10.96.0.3:80/TCP → 1",
        "write extent 10 (1 endpoints)",
        "point service 0 at extent 10",
    ];
    assert_eq!(carry_out(&mut planner, &desired), expected);
}

#[test]
fn services_that_swap_a_frontend_and_change_are_served_under_new_indexes() {
    let mut desired = shop();
    let mut planner = at(&desired, capacity(10, 100));
    lead(&mut desired, vip(1), "b");
    lead(&mut desired, vip(2), "a");
    assert_eq!(carry_out(&mut planner, &desired).len(), 3, "two moves and a fence between them");
    lead(&mut desired, vip(1), "a");
    lead(&mut desired, vip(2), "b");
    desired.services.insert(name("a"), serving(100, 1));
    carry_out(&mut planner, &desired);
    let names: Vec<_> = planner.actual().names.keys().collect();
    assert_eq!(names, [&1, &2], "b keeps its index");
    assert_eq!(planner.plan(&desired, None), Ok(vec![]));
}

#[test]
fn ports_addresses_and_names_that_somebody_else_changed_are_put_right() {
    let desired = shop();
    let mut left = at(&desired, capacity(10, 100)).actual().clone();
    left.ports = [(1, 1 << 17), (9, 4)].into();
    let addresses = std::mem::replace(&mut left.addresses, [(3, 1)].into());
    left.names.insert(1, "gone".into());
    let mut planner = Planner::new(left, capacity(10, 100));
    carry_out(&mut planner, &desired);
    assert_eq!(planner.actual().ports, [(1, 1 << 16)].into());
    assert_eq!(planner.actual().addresses, addresses);
    assert_eq!(planner.plan(&desired, None), Ok(vec![]));
}

#[test]
fn of_more_endpoints_than_a_header_counts_the_first_serve() {
    let mut desired = Desired::default();
    serve(&mut desired, "a", vip(1), serving(0, 70_000));
    let planner = at(&desired, need(&desired));
    assert_eq!(planner.actual().backends[1].cluster_only, u16::MAX);
    assert_eq!(planner.actual().backends.len(), 65_536);
    assert_eq!(planner.actual().backends[65_536].address(), address(0x0a00_0000 + 65_534));
}

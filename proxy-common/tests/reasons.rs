//! The page of all outcomes, made from what the programs count.

use std::fmt::Write;

use proxy_common::Reason;

/// `docs/reasons.md`.
fn markdown() -> String {
    let mut page = String::from(
        "# Reasons\n\n\
         <!-- Made from proxy-common/src/reason.rs: UPDATE_DOCS=1 cargo test -p proxy-common --test reasons -->\n\n\
         Every call and packet that vipr's programs see ends for exactly one of these reasons, and is counted under it: in\n\
         `vipr_outcomes_total` of `/metrics`, in `vipr status`, and in the map `counters` at the index given here.\n\n\
         | reason | index | |\n|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let _ = writeln!(page, "| {} | {} | {} |", reason.name(), *reason as u32, reason.help());
    }
    page
}

#[test]
fn the_page_of_all_reasons_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reasons.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(known, markdown(), "UPDATE_DOCS=1 writes it anew");
}

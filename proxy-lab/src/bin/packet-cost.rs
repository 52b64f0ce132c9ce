//! `packet-cost [SERVICES…]`: what packets cost in vipr's programs on this machine, in nanoseconds above an empty program.
//! Needs root. By default with 1, 10 000 and 50 000 Services.

use std::process::ExitCode;

use anyhow::{Context, Result};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use proxy_lab::{cost, role};

fn main() -> ExitCode {
    if let Some(played) = role::play_if_asked() {
        return played;
    }
    match show() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("packet-cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show() -> Result<()> {
    let services: Vec<u32> = std::env::args()
        .skip(1)
        .map(|word| word.parse().with_context(|| format!("{word:?} is not a number of Services")))
        .collect::<Result<_>>()?;
    let services = if services.is_empty() { vec![1, 10_000, 50_000] } else { services };
    let costs = cost::measure(&services)?;
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(["packet", "hook", "tables", "Services", "ns"]);
    for cost in costs {
        let tables = if cost.cold { "cold" } else { "warm" };
        let (services, ns) = (cost.services.to_string(), format!("{:.0}", cost.nanoseconds));
        table.add_row([cost.packet, cost.hook, tables, &services, &ns]);
    }
    println!("{table}");
    Ok(())
}

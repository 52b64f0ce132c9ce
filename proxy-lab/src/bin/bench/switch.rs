//! How long a change of endpoints takes until a client meets it, from the API server's answer to who changed them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::api::point;
use crate::ground::{From, Ground, TARGETS};
use crate::sample::Row;

/// The figure's name: milliseconds, a row a change.
pub(crate) const NAME: &str = "switch";
/// kube-proxy collects changes for a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Moves each contestant's Service to its other server and back, `changes` times in all.
pub(crate) fn run(ground: &mut Ground<'_>, services: u32, changes: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let takers = (0..ground.contestants.len())
        .filter(|&number| ground.takes_part(number, services) && ground.pid(number).is_some());
    for number in takers.collect::<Vec<_>>() {
        let (object, to) = (ground.object(number), ground.to(number, From::Pod));
        let api = ground.api();
        for round in 0..changes {
            // Back at the first when it ends: the number of changes is even.
            let (target, name) = TARGETS[(round as usize + 1) % 2];
            let ground = &*ground;
            let (took, failed) = api.with(|client| async move {
                // The first request of a client opens its connection.
                client.request_text(http::Request::get("/version").body(Vec::new())?).await?;
                point(&client, &ground.object(number), target).await?;
                Ok(wait(ground, number, to, name))
            })??;
            rows.push(Row {
                services,
                figure: NAME.to_owned(),
                contestant: ground.contestants[number].name.to_owned(),
                round,
                value: took.as_secs_f64() * 1e3,
                failed,
            });
        }
        ensure!(changes.is_multiple_of(2), "{} is left with its other server", object.name);
    }
    Ok(rows)
}

/// From now until a new connection meets `name`; and how many failed.
fn wait(ground: &Ground<'_>, number: usize, to: std::net::SocketAddrV4, name: u8) -> Result<(Duration, u64)> {
    let (start, mut failed) = (Instant::now(), 0);
    loop {
        match ground.who(number, to) {
            Ok(who) if who == name => return Ok((start.elapsed(), failed)),
            Ok(_) => {}
            Err(_) => failed += 1,
        }
        ensure!(start.elapsed() < LIMIT, "{to} is not moved within {LIMIT:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

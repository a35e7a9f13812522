//! A service with threads, spans and errors, as a web server has them. What it wrote last is there when it is killed.
//!
//! ```text
//! cargo run -p relay-producer --features log,tracing --example service; audience -c app/log -n 20
//! ```
//!
//! `$RELAYFS` names the relayfs, by default /mnt/relay. It runs until a signal ends it.

use std::error::Error;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::{debug, error, info, info_span, warn};
use tracing_subscriber::{prelude::*, registry};

/// Threads that answer requests.
const WORKERS: usize = 4;
const PATHS: [&str; 4] = ["/", "/users", "/users/7", "/broken"];

struct Request {
    id: u64,
    method: &'static str,
    path: &'static str,
}

fn main() -> Result<(), Box<dyn Error>> {
    relay_producer::panic_hook("app/log")?;
    relay_producer::log::init("app/log")?;
    tracing::subscriber::set_global_default(registry().with(relay_producer::tracing::layer("app/log")?))?;

    info!(workers = WORKERS, "started");
    let (sender, receiver) = sync_channel(WORKERS);
    let receiver = Mutex::new(receiver);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| answer_all(&receiver));
        }
        for id in 1.. {
            let method = if id % 5 == 0 { "POST" } else { "GET" };
            let request = Request { id, method, path: PATHS[id as usize % PATHS.len()] };
            if sender.send(request).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    Ok(())
}

fn answer_all(requests: &Mutex<Receiver<Request>>) {
    loop {
        let next = requests.lock().map(|requests| requests.recv());
        let Ok(Ok(request)) = next else { return };
        let _entered =
            info_span!("request", id = request.id, method = request.method, path = request.path).entered();
        match answer(&request) {
            Ok(bytes) => info!(status = 200u64, bytes, "answered"),
            Err(error) => error!(status = 500u64, %error, "failed"),
        }
    }
}

fn answer(request: &Request) -> Result<u64, String> {
    let rows = query(request.path)?;
    if request.method == "POST" {
        warn!(rows, "the cache is stale");
    }
    // A library that uses the crate `log`.
    log::info!(target: "cache", rows = rows; "looked up {}", request.path);
    Ok(100 + rows * 20)
}

#[tracing::instrument(err)]
fn query(path: &str) -> Result<u64, String> {
    let rows = path.len() as u64;
    if path == "/broken" {
        return Err(format!("no table for {path:?}"));
    }
    debug!(rows, "read");
    Ok(rows)
}

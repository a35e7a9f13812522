//! Logs into a timed channel from two threads, and aborts: what they wrote last is there to be read.
//!
//! ```text
//! cargo run -p relay-producer --example timed -- MOUNT; audience -m MOUNT -c app/crash -n 3
//! ```

use std::env;
use std::error::Error;
use std::process::abort;
use std::thread;

use relay_producer::{Channel, Definition, Field, FieldType, Level, Value};

fn main() -> Result<(), Box<dyn Error>> {
    let mount = env::args().nth(1).unwrap_or_else(|| "/mnt/relay".into());
    let log = Channel::builder(mount, "app/crash").create(true).timed(true).open()?;
    let query = log.define(Definition {
        name: "query".into(),
        level: Some(Level::Debug),
        target: "app::db".into(),
        file: file!().into(),
        line: line!(),
        fields: vec![
            Field { name: "host".into(), kind: FieldType::Str },
            Field { name: "rows".into(), kind: FieldType::U64 },
        ],
    })?;
    log.log(Level::Info, "app", "started")?;
    thread::scope(|scope| {
        // Records of another thread have its number, and the same process.
        let database = scope.spawn(|| {
            for rows in 0..3 {
                query.write(&[Value::from("a"), Value::U64(rows)])?;
            }
            log.log(Level::Warn, "app::db", "the connection is slow")
        });
        database.join().expect("a thread that does not panic")
    })?;
    log.log(Level::Error, "app", "no answer from the database: giving up")?;
    // No message is lost: they are in the buffers.
    abort();
}

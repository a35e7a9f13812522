//! A program that uses the layer for `tracing` oddly, as its program's subscriber: `test-odd-frontend WHAT`. Its channel
//! is `app/log` of the relayfs that `$RELAYFS` names, and all that it writes is of CPU 0.
//!
//! `texts`: values whose texts panic, fail, or have events and spans; prints how many panics it has caught.
//! `destructors`: two threads have events when they end, one of them behind the destructors of the layer and its crate.
//! `hook`: a panic hook has events, also of a panic within a text of an event.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use relay_producer::panic_hook;
use relayfs_tests::direct::pin;
use tracing::field::{Empty, debug};
use tracing::{error, info, info_span, warn};
use tracing_subscriber::prelude::*;

fn main() {
    pin(0);
    let what = std::env::args().nth(1).expect("an argument");
    let layer = relay_producer::tracing::layer("app/log").expect("a layer");
    tracing_subscriber::registry().with(layer).init();
    match what.as_str() {
        "texts" => write_texts(),
        "destructors" => [true, false].into_iter().for_each(end_thread),
        "hook" => panic_in_text(),
        what => panic!("wrong argument: {what}"),
    }
}

/// A value whose text does what programs' texts may do.
#[derive(Clone, Copy)]
enum Text {
    Panics,
    Fails,
    Tells,
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("begun ")?;
        match self {
            Text::Panics => panic!("no text"),
            Text::Fails => Err(fmt::Error),
            Text::Tells => {
                let _span = info_span!("within", deep = true).entered();
                warn!("inner");
                f.write_str("ended")
            }
        }
    }
}

fn tell(value: Text) {
    let span = info_span!("span", ?value, late = Empty);
    let _entered = span.enter();
    span.record("late", debug(value));
    info!(before = 1, ?value, "told {value:?}");
}

fn is_caught(act: impl FnOnce()) -> usize {
    std::panic::set_hook(Box::new(|_| ()));
    usize::from(catch_unwind(AssertUnwindSafe(act)).is_err())
}

fn write_texts() {
    let _outer = info_span!("outer").entered();
    let in_event = || info!(value = ?Text::Panics, "told");
    let late = info_span!("late", late = Empty);
    let in_record = || {
        late.record("late", debug(Text::Panics));
    };
    let caught =
        [is_caught(|| tell(Text::Panics)), is_caught(in_event), is_caught(in_event), is_caught(in_record)];
    drop(late);
    tell(Text::Fails);
    tell(Text::Tells);
    info!("after");
    println!("{}", caught.iter().sum::<usize>());
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// Has events when its thread ends.
struct Last;

impl Drop for Last {
    fn drop(&mut self) {
        // The registry has no new spans for a thread that ends.
        known();
        error!(number = 7, "in a destructor");
    }
}

fn known() {
    info!("known");
}

/// Destructors run in the reverse order of the first uses.
fn end_thread(is_first: bool) {
    let thread = thread::spawn(move || {
        if is_first {
            LAST.set(Some(Last));
        }
        info_span!("before").in_scope(known);
        LAST.set(Some(Last));
    });
    thread.join().expect("a thread without a panic");
}

fn panic_in_text() {
    std::panic::set_hook(Box::new(|info| error!("hook: {}", info.payload_as_str().unwrap_or("?"))));
    panic_hook("app/log").expect("a channel");
    for _ in 0..2 {
        assert!(catch_unwind(|| info!(value = ?Text::Panics, "told")).is_err());
    }
    assert!(catch_unwind(|| panic!("an ordinary one")).is_err());
}

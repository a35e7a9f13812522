//! Prints the bytes of a raw channel as they are: CPU by CPU, and with `--follow` as they come.

use audience_common::output::Output;

use super::arrivals::Arrivals;
use super::delivery::Delivery;
use super::error::Failure;
use super::hub::{Hub, LOOK_AGAIN};
use super::meaning::shown;
use crate::output::say;

/// Prints the bytes of all lanes.
pub(super) fn print(hub: &mut Hub, output: &mut Output) -> Result<(), Failure> {
    for lane in &hub.lanes {
        let mut lane = lane.borrow_mut();
        loop {
            print_queued(&mut lane, output)?;
            if !lane.wait(&hub.waiter) {
                break;
            }
        }
        print_queued(&mut lane, output)?;
    }
    if !hub.follow {
        return hub.end();
    }
    loop {
        let is_ending = hub.waiter.stops.is_ended();
        hub.add_appeared();
        for lane in &hub.lanes {
            let mut lane = lane.borrow_mut();
            while lane.poll() {
                print_queued(&mut lane, output)?;
            }
        }
        if is_ending {
            return hub.end();
        }
        hub.pause(LOOK_AGAIN);
    }
}

fn print_queued(lane: &mut Arrivals, output: &mut Output) -> Result<(), Failure> {
    while let Some(delivery) = lane.take() {
        match delivery {
            Delivery::SubBuffer(arrived) if arrived.timed.is_none() => output.write(&arrived.bytes)?,
            Delivery::SubBuffer(arrived) => {
                say(format_args!(
                    "{}: sub-buffer {} has records now: it is left out",
                    place(lane),
                    arrived.number
                ));
            }
            Delivery::Notice { notice, .. } => say(format_args!("{}: {}", place(lane), notice.text)),
            Delivery::End => {}
        }
    }
    Ok(())
}

/// What a lane is called in messages.
pub(super) fn place(lane: &Arrivals) -> String {
    format!("{} {} cpu{}", shown(&lane.subject.host), lane.subject.channel, lane.cpu)
}

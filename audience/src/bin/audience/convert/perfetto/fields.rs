//! Numbers of Perfetto's messages, fields and constants, as in its `perfetto_trace.proto`.

/// Trace.packet.
pub(super) const PACKET: u32 = 1;

/// TracePacket.
pub(super) mod packet {
    pub(in super::super) const CLOCK_SNAPSHOT: u32 = 6;
    pub(in super::super) const TIMESTAMP: u32 = 8;
    pub(in super::super) const SEQUENCE_ID: u32 = 10;
    pub(in super::super) const TRACK_EVENT: u32 = 11;
    pub(in super::super) const ANDROID_LOG: u32 = 39;
    pub(in super::super) const TIMESTAMP_CLOCK_ID: u32 = 58;
    pub(in super::super) const TRACK_DESCRIPTOR: u32 = 60;
}

/// ClockSnapshot, and the clocks in it.
pub(super) mod clocks {
    pub(in super::super) const CLOCK: u32 = 1;
    pub(in super::super) const CLOCK_ID: u32 = 1;
    pub(in super::super) const CLOCK_TIMESTAMP: u32 = 2;
    pub(in super::super) const PRIMARY: u32 = 2;
    /// Ids of clocks; they are not those of clock_gettime(2).
    pub(in super::super) const REALTIME: u64 = 1;
    pub(in super::super) const MONOTONIC: u64 = 3;
    pub(in super::super) const BOOTTIME: u64 = 6;
}

/// TrackDescriptor, and the descriptors in it.
pub(super) mod track {
    pub(in super::super) const UUID: u32 = 1;
    pub(in super::super) const NAME: u32 = 2;
    pub(in super::super) const PROCESS: u32 = 3;
    pub(in super::super) const THREAD: u32 = 4;
    pub(in super::super) const PARENT: u32 = 5;
    pub(in super::super) const COUNTER: u32 = 8;
    pub(in super::super) const PROCESS_PID: u32 = 1;
    pub(in super::super) const PROCESS_CMDLINE: u32 = 2;
    pub(in super::super) const PROCESS_NAME: u32 = 6;
    pub(in super::super) const PROCESS_START: u32 = 7;
    pub(in super::super) const THREAD_PID: u32 = 1;
    pub(in super::super) const THREAD_TID: u32 = 2;
    pub(in super::super) const THREAD_NAME: u32 = 5;
    pub(in super::super) const COUNTER_UNIT: u32 = 3;
    pub(in super::super) const UNIT_COUNT: u64 = 2;
    pub(in super::super) const UNIT_BYTES: u64 = 3;
}

/// TrackEvent.
pub(super) mod event {
    pub(in super::super) const ANNOTATION: u32 = 4;
    pub(in super::super) const TYPE: u32 = 9;
    pub(in super::super) const TRACK: u32 = 11;
    pub(in super::super) const CATEGORY: u32 = 22;
    pub(in super::super) const NAME: u32 = 23;
    pub(in super::super) const COUNTER_VALUE: u32 = 30;
    pub(in super::super) const SLICE_BEGIN: u64 = 1;
    pub(in super::super) const SLICE_END: u64 = 2;
    pub(in super::super) const INSTANT: u64 = 3;
    pub(in super::super) const COUNTER: u64 = 4;
}

/// DebugAnnotation.
pub(super) mod annotation {
    pub(in super::super) const BOOL: u32 = 2;
    pub(in super::super) const UINT: u32 = 3;
    pub(in super::super) const INT: u32 = 4;
    pub(in super::super) const DOUBLE: u32 = 5;
    pub(in super::super) const STRING: u32 = 6;
    pub(in super::super) const NAME: u32 = 10;
}

/// AndroidLogPacket, and the events in it.
pub(super) mod log {
    pub(in super::super) const EVENT: u32 = 1;
    pub(in super::super) const PID: u32 = 2;
    pub(in super::super) const TID: u32 = 3;
    pub(in super::super) const UID: u32 = 4;
    pub(in super::super) const TIMESTAMP: u32 = 5;
    pub(in super::super) const TAG: u32 = 6;
    pub(in super::super) const PRIORITY: u32 = 7;
    pub(in super::super) const MESSAGE: u32 = 8;
}

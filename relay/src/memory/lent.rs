//! Bytes that other processes may change at any time.
//!
//! A `&[u8]` promises the compiler that its bytes stay as they are, so Rust code never gets one of shared memory. It
//! gets a [`Lent`], which copies, compares by copying, and passes its address to the kernel.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use crate::memory::sync::AtomicByte;

/// Bytes of a ring, or of private memory, that are valid for `'a` and may change meanwhile.
#[derive(Clone, Copy)]
pub struct Lent<'a> {
    at: NonNull<u8>,
    len: usize,
    _of: PhantomData<&'a [AtomicByte]>,
}

impl<'a> Lent<'a> {
    /// Lends the `len` bytes at `at`.
    ///
    /// # Safety The bytes are readable for all of `'a`. Other threads and processes may store there.
    #[cfg(not(loom))]
    pub(crate) unsafe fn new(at: NonNull<u8>, len: usize) -> Lent<'a> {
        Lent { at, len, _of: PhantomData }
    }

    /// Returns the number of bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Returns the bytes from `from` on, or none if `from` is behind the end.
    pub fn skip(self, from: usize) -> Lent<'a> {
        let from = from.min(self.len);
        // SAFETY: `from <= len`, so the result stays inside the bytes, or is their end.
        let at = unsafe { self.at.add(from) };
        Lent { at, len: self.len - from, _of: PhantomData }
    }

    /// Appends a copy of the bytes to `out`.
    /// False, and nothing is appended, if there is no memory for them.
    pub fn copy_to(self, out: &mut Vec<u8>) -> bool {
        if out.try_reserve(self.len).is_err() {
            return false;
        }
        let to = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: readable by `new`, and the spare capacity has as many bytes by `try_reserve`. They do not overlap, for `out` is
        // borrowed mutably. Bytes that change during the copy give any value, and any `u8` is valid, see `mapping.rs`.
        unsafe { to.copy_from_nonoverlapping(self.at.as_ptr(), self.len) }
        // SAFETY: the copy initialised exactly `len` bytes behind the old length.
        unsafe { out.set_len(out.len() + self.len) }
        true
    }

    /// Returns a copy of the bytes.
    pub fn to_vec(self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(self.len);
        self.copy_to(&mut copy);
        copy
    }

    /// Writes the bytes to a file with one write(2), and returns how many the kernel took.
    pub fn write_to(self, file: impl AsFd) -> io::Result<usize> {
        // SAFETY: readable by `new`; the kernel reads the bytes, whatever they are at that time.
        let written = unsafe { libc::write(file.as_fd().as_raw_fd(), self.at.as_ptr().cast(), self.len) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Calls `pass` with the bytes as a slice, for an interface that takes only slices.
    ///
    /// `pass` must hand the slice to a system call that reads it, and must not look at its bytes. They may change at
    /// any time, which a slice rules out for all code that the compiler sees. Code that looks at the bytes uses
    /// [`copy_to`](Self::copy_to).
    pub fn pass_to_kernel<R>(self, pass: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: readable for `'a` by `new`. No process can promise that the bytes stay as they are. But `pass` hands
        // their address to the kernel alone, so no load of the program depends on it.
        pass(unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) })
    }
}

impl<'a> From<&'a [u8]> for Lent<'a> {
    fn from(bytes: &'a [u8]) -> Lent<'a> {
        Lent { at: NonNull::from(bytes).cast(), len: bytes.len(), _of: PhantomData }
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Lent<'a> {
    fn from(bytes: &'a [u8; N]) -> Lent<'a> {
        Lent::from(&bytes[..])
    }
}

/// Compares with a copy of the bytes.
impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Lent<'_> {
    fn eq(&self, other: &T) -> bool {
        self.len == other.as_ref().len() && self.to_vec() == other.as_ref()
    }
}

impl fmt::Debug for Lent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.to_vec().escape_ascii())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn part_and_copy_have_the_bytes() {
        let lent = Lent::from(b"abcdef");
        assert_eq!((lent.len(), lent.is_empty()), (6, false));
        assert_eq!(lent, b"abcdef");
        assert_eq!(lent.skip(4), b"ef");
        assert!(lent.skip(6).is_empty() && lent.skip(7).is_empty());
        let mut out = b"<".to_vec();
        assert!(lent.skip(3).copy_to(&mut out));
        assert_eq!(out, b"<def");
        assert_eq!(format!("{lent:?}"), "\"abcdef\"");
        assert_eq!(lent.pass_to_kernel(<[u8]>::len), 6);
    }

    #[test]
    fn written_bytes_arrive_in_the_file() {
        let (reader, writer) = io::pipe().unwrap();
        assert_eq!(Lent::from(b"abc").write_to(&writer).unwrap(), 3);
        drop(writer);
        assert_eq!(io::read_to_string(reader).unwrap(), "abc");
        let (reader, _writer) = io::pipe().unwrap();
        assert!(Lent::from(b"abc").write_to(&reader).is_err());
    }
}

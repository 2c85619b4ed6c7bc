//! Structs that grow: each begins with its size and the version of the ABI that it was compiled for.

use crate::status::{Failure, Status};

/// Version of the ABI. Changes only when a program that was compiled before could misbehave; new functions and new
/// fields at the end of structs do not change it.
pub const ABI_VERSION: u32 = 1;

/// Larger than any struct will ever be: a size beyond it is garbage.
const LARGEST: usize = 4096;

/// A struct of the ABI.
///
/// # Safety
/// `repr(C)`, begins with `size: u32, version: u32`, has no padding, and every bit pattern is a value.
pub(crate) unsafe trait Versioned: Copy {
    /// Bytes of its first version: fewer are not enough.
    const SMALLEST: usize;
}

fn check_head(size: u32, version: u32, smallest: usize, name: &str) -> Result<usize, Failure> {
    if version != ABI_VERSION {
        let what = format!(
            "{name}.version is {version}; this library has version {ABI_VERSION} (kvtier_init sets it)"
        );
        return Err(Failure::new(Status::Unsupported, what));
    }
    let size = size as usize;
    if !(smallest..=LARGEST).contains(&size) {
        let what = format!("{name}.size is {size}; it must be at least {smallest} (kvtier_init sets it)");
        return Err(Failure::new(Status::Unsupported, what));
    }
    Ok(size)
}

fn not_null<T>(pointer: *const T, name: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{name} is null")));
    }
    if !pointer.is_aligned() {
        return Err(Failure::argument(format!("{name} is not aligned")));
    }
    Ok(())
}

/// Reads a struct of the caller, whatever version of it he was compiled with: fields that he does not know are zero.
/// Fields that this library does not know must be zero, for it could not do what they ask.
///
/// # Safety
/// `from` is null or points to a struct whose first field is its size.
pub(crate) unsafe fn read<T: Versioned>(from: *const T, name: &str) -> Result<T, Failure> {
    not_null(from, name)?;
    // SAFETY: not null, aligned, and there are at least the two fields of the head.
    let [size, version] = unsafe { from.cast::<[u32; 2]>().read() };
    let size = check_head(size, version, T::SMALLEST, name)?;
    let ours = size_of::<T>();
    for at in ours..size {
        // SAFETY: within the size that the caller stated.
        if unsafe { from.cast::<u8>().add(at).read() } != 0 {
            let what = format!("{name} sets a field at byte {at} that this library does not know");
            return Err(Failure::new(Status::Unsupported, what));
        }
    }
    // SAFETY: all zeros is a value (trait).
    let mut value: T = unsafe { std::mem::zeroed() };
    // SAFETY: within both structs; every bit pattern is a value (trait).
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), size.min(ours))
    };
    Ok(value)
}

/// Writes a struct for the caller: as much as he has room for, with its size as far as it is valid.
///
/// # Safety
/// `to` is null or points to a struct whose first field is its size.
pub(crate) unsafe fn write<T: Versioned>(to: *mut T, value: &T, name: &str) -> Result<(), Failure> {
    not_null(to.cast_const(), name)?;
    // SAFETY: not null, aligned, and there are at least the two fields of the head.
    let [size, version] = unsafe { to.cast::<[u32; 2]>().read() };
    let size = check_head(size, version, T::SMALLEST, name)?.min(size_of::<T>());
    // SAFETY: within both structs.
    unsafe { std::ptr::copy_nonoverlapping((&raw const *value).cast::<u8>(), to.cast::<u8>(), size) };
    // SAFETY: the head is there.
    unsafe { to.cast::<[u32; 2]>().write([size as u32, ABI_VERSION]) };
    Ok(())
}

/// Zeroes a struct and fills in its head.
///
/// # Safety
/// `to` is null or has `size` writable bytes.
pub(crate) unsafe fn init(to: *mut std::ffi::c_void, size: u64) -> Result<(), Failure> {
    not_null(to.cast::<u64>().cast_const(), "structure")?;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if !(8..=LARGEST).contains(&size) {
        return Err(Failure::argument(format!("size is {size}; pass sizeof the structure")));
    }
    // SAFETY: the caller's word.
    unsafe { to.cast::<u8>().write_bytes(0, size) };
    // SAFETY: aligned (above), at least 8 bytes.
    unsafe { to.cast::<[u32; 2]>().write([size as u32, ABI_VERSION]) };
    Ok(())
}

/// Gives a single value back.
///
/// # Safety
/// `to` is null or writable.
pub(crate) unsafe fn give<T>(to: *mut T, value: T) -> Result<(), Failure> {
    // SAFETY: checked by the callers by `out`.
    unsafe { to.write(value) };
    Ok(())
}

/// Checks where a value is to go, before anything is done.
pub(crate) fn out<T>(to: *mut T, name: &str) -> Result<(), Failure> {
    not_null(to.cast_const(), name)
}

/// An array of the caller's to write to.
pub(crate) fn not_null_array<T>(to: *mut T, count: u64, name: &str) -> Result<(), Failure> {
    if count == 0 { Ok(()) } else { not_null(to.cast_const(), name) }
}

/// An array of the caller's.
///
/// # Safety
/// `from` is null or has `count` readable elements that nobody writes for as long as the slice is used.
pub(crate) unsafe fn array<'a, T>(
    from: *const T,
    count: u64,
    most: usize,
    name: &str,
) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    not_null(from, name)?;
    match usize::try_from(count) {
        // SAFETY: not null, aligned, and the caller's word. `most` keeps the bytes below `isize::MAX`.
        Ok(count) if count <= most => Ok(unsafe { std::slice::from_raw_parts(from, count) }),
        _ => Err(Failure::argument(format!("{name} has {count} elements; at most {most} are taken"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    #[repr(C)]
    struct Small {
        size: u32,
        version: u32,
        a: u64,
    }
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    #[repr(C)]
    struct Large {
        size: u32,
        version: u32,
        a: u64,
        b: u64,
    }
    // SAFETY: repr(C), the head first, no padding, plain numbers.
    unsafe impl Versioned for Small {
        const SMALLEST: usize = 16;
    }
    // SAFETY: as above.
    unsafe impl Versioned for Large {
        const SMALLEST: usize = 16;
    }

    #[test]
    fn old_programs_meet_new_libraries_and_the_other_way_round() {
        let old = Small { size: 16, version: 1, a: 7 };
        // SAFETY: the size says how much there is.
        let read_old = unsafe { read((&raw const old).cast::<Large>(), "s") }.unwrap();
        assert_eq!((read_old.a, read_old.b), (7, 0));
        let new = Large { size: 24, version: 1, a: 7, b: 0 };
        // SAFETY: as above.
        assert_eq!(unsafe { read((&raw const new).cast::<Small>(), "s") }.unwrap().a, 7);
        let asks = Large { b: 1, ..new };
        // SAFETY: as above.
        let refused = unsafe { read((&raw const asks).cast::<Small>(), "s") }.unwrap_err();
        assert_eq!(refused.status, Status::Unsupported);

        let mut room = Large { size: 24, version: 1, a: 0, b: 9 };
        // SAFETY: as above.
        unsafe { write((&raw mut room).cast::<Small>(), &Small { a: 3, ..old }, "s") }.unwrap();
        assert_eq!(room, Large { size: 16, version: 1, a: 3, b: 9 });
    }
}

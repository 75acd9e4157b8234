-- The beginning of every script.
--
-- KEYS[1]  the format of the application's keys
-- KEYS[2]  the hash of its checkpoints
-- KEYS[3]  the hash of its leases
-- KEYS[4]  the hash of its workers
-- KEYS[5]  the hash of the numbers of its table
--
-- A script gets the first two keys, or all. It reads everything before it writes anything, since
-- Redis does not roll back the writes of a script that fails later.

local FORMAT, CHECKPOINTS, LEASES, WORKERS, FLEET = 1, 2, 3, 4, 5

-- The error that the script returns. An error raised by Lua would lose its code.
local refusal

local function fail(reply)
  refusal = reply
  error('refused', 0)
end

local function refuse(code, detail)
  fail(redis.error_reply(code .. ' ' .. detail))
end

-- Runs `look`, which only reads, and then `write`. Returns the result of `look`, or the error that
-- it raised with `fail`. If `write` fails, Redis returns the error itself.
local function run(look, write)
  local done, answer = pcall(look)
  if refusal then
    return refusal
  end
  if not done then
    error(answer, 0)
  end
  write()
  return answer
end

local function read(command, key, ...)
  local answer = redis.pcall(command, KEYS[key], ...)
  if type(answer) == 'table' and answer.err then
    if string.match(answer.err, '^-?WRONGTYPE') then
      refuse('KINESTREAMTYPE', key)
    end
    fail(answer)
  end
  return answer
end

local function garbled(key, field)
  refuse('KINESTREAMVALUE', key .. ' ' .. field)
end

-- The content of the format key; false if nothing was ever written.
local format

local function read_format()
  format = read('GET', FORMAT)
  if format and format ~= '1' then
    refuse('KINESTREAMFORMAT', format)
  end
end

-- Compares two numbers of any length, given as text without leading zeros.
local function greater(left, right)
  if #left ~= #right then
    return #left > #right
  end
  return left > right
end

-- The largest 64-bit number, and the maximum length of a sequence number.
local MAX_U64 = '18446744073709551615'
local MAX_DIGITS = 129

local function is_number(text)
  return text == '0' or string.match(text, '^[1-9]%d*$') ~= nil
end

local function is_u64(text)
  return is_number(text) and not greater(text, MAX_U64)
end

local function is_sequence_number(text)
  return is_number(text) and #text <= MAX_DIGITS
end

-- Parses a checkpoint; nil if the text is not a checkpoint. The ranks are 0 for a starting
-- position, 1 for a quiet shard without a finished record, 2 for a position in the shard, and 3 for
-- the end of the shard. Rejects every text that src/checkpoint.rs rejects.
local function parse(text)
  local time = string.match(text, '^AT_TIMESTAMP:(%d+)$')
  if text == 'TRIM_HORIZON' or time and is_u64(time) then
    return { text = text, rank = 0 }
  end
  if text == 'SHARD_END' then
    return { text = text, rank = 3, is_end = true }
  end
  local number = string.match(text, '^AFTER_SEQUENCE_NUMBER:(%d+)$')
  if number and is_sequence_number(number) then
    return { text = text, rank = 2, number = number }
  end
  local part
  number, part = string.match(text, '^AFTER_SEQUENCE_NUMBER:(%d+):(%d+)$')
  if number and is_sequence_number(number) and is_u64(part) then
    return { text = text, rank = 2, number = number, part = part }
  end
  local till = string.match(text, '^CAUGHT_UP:(%d+)$')
  if till and is_u64(till) then
    return { text = text, rank = 1, till = till }
  end
  till, number = string.match(text, '^CAUGHT_UP:(%d+):(%d+)$')
  if till and is_u64(till) and is_sequence_number(number) then
    return { text = text, rank = 2, number = number, till = till }
  end
  return nil
end

local function supersedes(new, stored)
  if new.rank ~= stored.rank then
    return new.rank > stored.rank
  end
  if new.rank == 1 then
    return greater(new.till, stored.till)
  end
  if new.rank == 2 then
    if new.number ~= stored.number then
      return greater(new.number, stored.number)
    end
    -- A whole record is further than a part of it, and a position with a time is further still.
    if stored.part then
      return not new.part or greater(new.part, stored.part)
    end
    return new.till ~= nil and (not stored.till or greater(new.till, stored.till))
  end
  return false
end

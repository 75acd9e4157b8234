-- Applies an operator's edit.
--
-- ARGV  1 if the edit is forced, SET, shard, checkpoint, shard, checkpoint, …
--       1 if the edit is forced, CLEAR
--
-- If a live worker prevents an edit that is not forced, returns its name and changes nothing.

local forced, kind = ARGV[1] == '1', ARGV[2]
local FIRST_SHARD = 3

local function is_alive(name)
  return workers[name] and workers[name].expiry > millis
end

-- Returns the live owner of a shard's lease, or false.
local function living_owner(shard)
  local lease = stored_lease(shard)
  return lease and is_alive(lease.owner) and lease.owner
end

local function against()
  if kind == 'SET' then
    for index = FIRST_SHARD, #ARGV, 2 do
      local owner = living_owner(ARGV[index])
      -- The owner of an unreadable shard does not read it.
      if owner and not is_unreadable(ARGV[index]) then
        return owner
      end
    end
    return false
  end
  local first
  for name in pairs(workers) do
    if is_alive(name) and (not first or name < first) then
      first = name
    end
  end
  return first
end

-- Resets the table. The version continues, so that the new table is not taken for the old one.
local function clear()
  read_leases()
  local latest = math.max(fleet.cleared, fleet.epoch, millis)
  for _, lease in pairs(leases) do
    latest = math.max(latest, lease and lease.epoch or 0)
  end
  fleet.generation, fleet.cleared = math.max(micros, fleet.generation + 1), latest
  fleet.first_poll = 0
end

-- Sets the position of a shard. A live owner keeps the lease, so that no other worker starts before
-- the owner has seen the new epoch.
local function set(shard, position)
  local lease, owner = stored_lease(shard), living_owner(shard)
  move(shard, position)
  if unreadable[LEASES][shard] then
    lease = { epoch = 0, owner = NONE, heir = NONE, origin = fleet.generation, parents = UNKNOWN,
      state = NONE, start = NONE }
    leases[shard] = lease
  end
  unreadable[CHECKPOINTS][shard], unreadable[LEASES][shard] = nil, nil
  if lease then
    -- The operator's position applies, regardless of the stream of the shard.
    lease.state, lease.start, lease.added = NONE, NONE, millis
    begin_anew(shard, owner)
  end
end

return run(function()
  read_format()
  read_fleet()
  read_workers()
  notice_loss()
  local name = against()
  if name and not forced then
    return name
  end
  if kind == 'SET' then
    for index = FIRST_SHARD, #ARGV, 2 do
      set(ARGV[index], parse(ARGV[index + 1]))
    end
  else
    clear()
  end
  changed = true
  finish_step()
  return false
end, function()
  if kind == 'CLEAR' and stale_fleet then
    redis.call('DEL', KEYS[CHECKPOINTS], KEYS[LEASES], KEYS[WORKERS])
  end
  write()
end)

-- Saves each position unless its epoch is no longer valid, and none backwards.
--
-- ARGV  shard, epoch, checkpoint, shard, epoch, checkpoint, …
--
-- Returns the outcome of each position. The script is idempotent: a second run returns the same.

local function save(shard, epoch, position)
  if is_unreadable(shard) then
    return 'UNREADABLE'
  end
  local lease = lease_at(shard)
  -- As text, since an arbitrary epoch may exceed the integers that a Lua number represents exactly.
  local known = lease and digits(lease.epoch)
  local is_cleared = fleet.cleared > 0 and not greater(epoch, digits(fleet.cleared))
  if known and greater(known, epoch) or is_cleared then
    return 'LOST'
  end
  -- The shard may have been removed; it must not be added again.
  if not lease and not is_kept(tonumber(epoch)) then
    return 'LOST'
  end
  if position.is_end then
    end_shard(shard)
  else
    advance(shard, position)
  end
  return known == epoch and 'SAVED' or 'FORGOTTEN'
end

return run(function()
  read_format()
  read_fleet()
  notice_loss()
  local verdicts = {}
  for index = 1, #ARGV, 3 do
    verdicts[#verdicts + 1] = save(ARGV[index], ARGV[index + 1], parse(ARGV[index + 2]))
  end
  finish_step()
  return verdicts
end, write)

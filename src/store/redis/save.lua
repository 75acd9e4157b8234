local answers, has_lost = {}, has_lost_key()
for index = 1, #ARGV, 4 do
  local shard, epoch, expected, text = unpack(ARGV, index, index + 3)
  -- After a loss, no shard has a lease until an exchange has noticed it.
  local lease = not has_lost and redis.call('HGET', LEASES, shard)
  local stored = argument_of(redis.call('HGET', CHECKPOINTS, shard))
  local is_in_force = epoch == '' or lease and string.match(lease, '^%d+') == epoch
  local is_saved = is_in_force and stored == expected
  if is_saved then
    redis.call('HSET', CHECKPOINTS, shard, string.sub(text, 2))
    redis.call('SETNX', FORMAT, '1')
  end
  answers[#answers + 1] = is_saved and 1 or 0
  answers[#answers + 1] = argument_of(lease)
  answers[#answers + 1] = is_saved and text or stored
end
if fleet.keys and not has_lost and not string.find(fleet.keys, 'checkpoints') then
  redis.call('HSET', FLEET, 'keys', existing_keys())
end
return answers
